"""What one sequence may generate next.

An answer begins inside a thought, before one, in its text, or in what a grammar rules; a grammar may also
wait for the token that opens a call. Towards the end of the tokens that the answer may have, the grammar is
left on a short way: of the tokens it allows, those that close something are the only ones offered.
"""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import Literal

import llguidance
import numpy as np

from mmx.grammar.errors import reason_of
from mmx.grammar.tags import OpenTags
from mmx.grammar.vocabulary import Row, Vocabulary, allow, allow_only, allows, forbid
from mmx.protocol import Constraint

LOOK_EVERY = 8  # tokens between looks for the way to the end, each of which takes as many masks as it is long
LOOK_FAR = 256  # tokens that a look follows; a longer way counts as the reserve

_Phase = Literal["thought", "choice", "grammar", "free", "block", "done"]


class GrammarError(ValueError):
    """A grammar that can not be used, in one sentence."""


def compile_grammar(vocabulary: Vocabulary, grammar: str) -> llguidance.LLMatcher:
    """A matcher in its first state; copies of it are cheap. Raises GrammarError."""
    limits = llguidance.LLParserLimits(initial_lexer_fuel=10_000_000, step_lexer_fuel=2_000_000)
    matcher = llguidance.LLMatcher(vocabulary.matching, grammar, log_level=0, limits=limits)
    report = matcher.get_error()
    if not report:
        probe = matcher.deep_copy()
        probe.compute_bitmask()
        report = probe.get_error()
    if report:
        raise GrammarError(f"the grammar can not be used: {reason_of(report)}")
    return matcher


class Sequence:
    """``prototype`` is the compiled grammar, None if the constraint has none; ``limit`` is how many tokens
    the answer may have. Not safe to use from two threads at once."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        constraint: Constraint,
        prototype: llguidance.LLMatcher | None,
        limit: int,
    ) -> None:
        self._vocabulary = vocabulary
        self._constraint = constraint
        self._prototype = prototype
        self._limit = limit
        self._matcher = None if prototype is None else prototype.deep_copy()
        self._tags: OpenTags | None = None
        self._phase: _Phase = constraint.start
        self._forced: deque[int] = deque()
        self._num_tokens = 0
        self._num_thought = 0
        self._recent: deque[int] = deque(maxlen=max(map(len, constraint.bad_sequences), default=1))
        self._num_closed = 0  # tokens of ``closing`` that have been written
        self._way = self._looked_at = limit + LOOK_EVERY  # tokens to the end as last found, and when
        self._enforced = prototype is not None and constraint.trigger is None
        self._budget = self._thought_budget()
        self._allowed = None if constraint.allowed_ids is None else vocabulary.row(constraint.allowed_ids)
        if self._phase in ("grammar", "choice"):
            self._open_tags()
        self._check_budget()

    def _thought_budget(self) -> int | None:
        """Tokens a thought may have; a grammar that has to be obeyed keeps its share of the answer."""
        budget = self._constraint.thought_budget
        if not self._enforced:
            return budget
        ends = len(self._constraint.thought_end) + len(self._constraint.after_thought)
        room = max(0, self._limit - max(self._constraint.reserve, self._limit // 4) - ends)
        return room if budget is None else min(budget, room)

    def _open_tags(self) -> None:
        separator = self._constraint.separator
        self._tags = None if separator is None else OpenTags(self._vocabulary, separator)
        if self._tags is not None and self._phase == "block":
            self._tags.advance(self._constraint.trigger or 0)

    # ---- tokens --------------------------------------------------------------------------------------------

    def advance(self, token_id: int) -> None:
        """``token_id`` was sampled."""
        constraint = self._constraint
        self._num_tokens += 1
        self._recent.append(token_id)
        if self._forced:
            self._forced.popleft()
            return
        match self._phase:
            case "thought":
                if token_id == constraint.thought_close:
                    self._end_thought()
                elif token_id == constraint.trigger:
                    self._begin_block()
                else:
                    self._num_thought += 1
                    self._check_budget()
            case "choice":
                if token_id == constraint.thought_open:
                    self._phase = "thought"
                    self._check_budget()
                elif token_id == constraint.thought_close:
                    self._phase = "grammar" if self._enforced else "free"
                elif self._enforced:
                    self._phase = "grammar"
                    self._consume(token_id)
                else:
                    self._phase = "free"
                    self._take_free(token_id)
            case "free":
                self._take_free(token_id)
            case "grammar" | "block":
                self._consume(token_id)

    def _take_free(self, token_id: int) -> None:
        if token_id == self._constraint.trigger:
            self._begin_block()

    def _begin_block(self) -> None:
        assert self._prototype is not None, "a trigger needs a grammar"
        self._phase, self._matcher = "block", self._prototype.deep_copy()
        self._open_tags()

    def _check_budget(self) -> None:
        if self._phase == "thought" and self._budget is not None and self._num_thought >= self._budget:
            self._forced.extend(self._constraint.thought_end)
            self._end_thought()

    def _end_thought(self) -> None:
        if self._enforced:
            self._forced.extend(self._constraint.after_thought)
        self._phase = "grammar" if self._enforced else "free"
        if self._enforced:
            self._open_tags()

    def _consume(self, token_id: int) -> None:
        matcher = self._matcher
        assert matcher is not None
        if token_id in self._vocabulary.eos_ids:
            self._phase = "done"
            return
        closing, at = self._constraint.closing, self._num_closed
        self._num_closed = at + 1 if at < len(closing) and token_id == closing[at] else 0
        if not matcher.consume_token(token_id):
            raise GrammarError(f"the grammar does not allow the token {token_id}")
        if self._tags is not None:
            self._tags.advance(token_id)
        if matcher.is_stopped():
            again = self._phase == "block" and self._constraint.repeat
            self._phase = "free" if again else "done"

    # ---- masks ---------------------------------------------------------------------------------------------

    def fill(self, row: Row) -> bool:
        """Write the mask of the next token; False if every token is allowed. Raises GrammarError when no
        token is."""
        restricted = self._fill(row)
        if self._forced:
            return True
        bad = self._bad_ids()
        if not restricted and (bad or self._allowed is not None):
            row[:] = -1
            restricted = True
        if self._allowed is not None:
            row &= self._allowed
        forbid(row, bad)
        if restricted and not row.any():
            raise GrammarError("no token satisfies all constraints of the request")
        return restricted

    def _bad_ids(self) -> list[int]:
        """Tokens that are banned here, or would complete a banned sequence."""
        recent = list(self._recent)
        bad = list(self._constraint.banned_ids)
        for *before, last in self._constraint.bad_sequences:
            if not before or recent[-len(before) :] == before:
                bad.append(last)
        return bad

    def _fill(self, row: Row) -> bool:
        constraint, vocabulary = self._constraint, self._vocabulary
        if self._forced:
            row[:] = 0
            allow(row, [self._forced[0]])
            return True
        if self._phase == "done":
            row[:] = 0
            allow(row, vocabulary.eos_ids)
            return True
        if self._phase == "thought" and self._enforced:
            row[:] = vocabulary.text_row
            allow(row, [i for i in (constraint.thought_close,) if i is not None])
            return True
        if self._phase in ("thought", "free") or (self._phase == "choice" and not self._enforced):
            return False
        self._match(row)
        left = self._limit - self._num_tokens
        if left <= constraint.reserve:
            plain = row & vocabulary.plain_row
            self._close(row)
            if plain.any() and self._may_go_on(left, plain):
                row |= plain
        elif self._phase == "choice":
            allow(row, [i for i in (constraint.thought_open, constraint.thought_close) if i is not None])
        return True

    def _match(self, row: Row) -> None:
        """What the grammar allows."""
        matcher = self._matcher
        assert matcher is not None
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if matcher.is_error():
            raise GrammarError(f"the grammar can not be followed: {reason_of(matcher.get_error())}")
        if allows(row, self._vocabulary.eos_ids[0]):
            allow(row, self._vocabulary.eos_ids)
        if self._tags is not None:
            self._tags.restrict(row)

    def _may_go_on(self, left: int, plain: Row) -> bool:
        """Whether the text or number that is being written may become longer, by ``plain`` tokens: they do
        not change what is to be written behind it."""
        if self._phase == "choice" or self._num_closed or (self._tags is not None and self._tags.inside):
            return False
        # The way is not quite the shortest: a model spells as it likes.
        margin, letter = 12 + self._constraint.reserve // 4, self._constraint.letter
        if letter is not None and not allows(plain, letter):
            margin //= 4  # a number, which ends by itself, and would be another one if it were cut short
        if left <= self._way + margin and left <= self._looked_at - LOOK_EVERY:
            self._way, self._looked_at = self._way_out(), left
        return left > self._way + margin

    def _way_out(self) -> int:
        """How many tokens the end takes if only closers are written, or the first token that fits."""
        assert self._matcher is not None
        probe, row = copy(self), np.zeros(self._vocabulary.num_words, np.int32)
        probe._matcher = self._matcher.deep_copy()
        probe._tags = None if self._tags is None else self._tags.copy()
        for count in range(min(self._constraint.reserve, LOOK_FAR)):
            try:
                probe._match(row)
            except GrammarError:
                break  # the matcher has limits that the answer itself need not meet
            probe._close(row)
            if any(allows(row, eos) for eos in self._vocabulary.eos_ids):
                return count
            if not row.any():
                break
            probe._consume(int(np.unpackbits(row.view(np.uint8), bitorder="little").argmax()))
            if probe._phase != self._phase:
                return count + 1
        return self._constraint.reserve

    def _close(self, row: Row) -> None:
        """Leave only what leads to the end."""
        constraint = self._constraint
        for eos in self._vocabulary.eos_ids:
            if allows(row, eos):
                allow_only(row, self._vocabulary.eos_ids)
                return
        closing, at = constraint.closing, self._num_closed
        if at < len(closing) and allows(row, closing[at]):
            allow_only(row, [closing[at]])
            return
        # Why not the closing tag again at once, if it broke off: it is text here, and would be for ever.
        in_text = constraint.letter is not None and allows(row, constraint.letter)
        in_tag = self._tags is not None and self._tags.inside
        for closer in constraint.text_closers if in_text and not in_tag else constraint.closers:
            if allows(row, closer):
                allow_only(row, [closer])
                return
