"""Constrained sequences beside the engine's loop: grammars are compiled and token masks computed by threads
while the device works."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import numpy as np

from mmx.batch import SampledToken, ScheduledBatch, ScheduledSeq
from mmx.grammar.sequence import GrammarError, compile_grammar
from mmx.grammar.sequence import Sequence as Constrained
from mmx.grammar.vocabulary import Row, Vocabulary
from mmx.protocol import Constraint, Failed, Submit, TokenOut, duplicate
from mmx.tokenizer import Tokenizer

log = logging.getLogger("mmx.engine")

MAX_GRAMMARS = 64
MAX_THREADS = 8

Mask = Row | None
Masks = Callable[[Sequence[ScheduledSeq]], Sequence[Mask]]
"""Masks of these sequences' next tokens; it may wait for them."""


class _Tracked:
    """One live sequence; ``mask`` is that of its next token."""

    def __init__(self, sequence: Constrained, row: Row) -> None:
        self.sequence = sequence
        self.row = row
        self.mask: Future[Mask] = Future()
        self.mask.set_result(None)
        self.error: Exception | None = None

    def step(self, token_id: int | None) -> Mask:
        """Take a sampled token and compute what may follow it."""
        if token_id is not None:
            self.sequence.advance(token_id)
        return self.row if self.sequence.fill(self.row) else None


class Constraints:
    """The constrained sequences of one engine. ``folder`` holds the tokenizer; ``room`` is how many tokens a
    sequence may have with its prompt."""

    def __init__(self, folder: str, room: int) -> None:
        self._folder = Path(folder.partition("?")[0])
        self._room = room
        self._pool: ThreadPoolExecutor | None = None
        self._masks: ThreadPoolExecutor | None = None
        self._vocabulary: Future[Vocabulary] | None = None
        self._held: dict[str, tuple[Submit, Future[_Tracked]]] = {}
        self._tracked: dict[str, _Tracked] = {}
        self._grammars: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    # ---- requests ------------------------------------------------------------------------------------------

    @property
    def holding(self) -> bool:
        """Whether a request waits for its grammar."""
        return bool(self._held)

    def hold(self, message: Submit) -> Failed | None:
        """Prepare a constrained request; ``released`` returns it. Others are not held up meanwhile."""
        request_id = message.request_id
        if request_id in self._held:
            return duplicate(request_id)
        self._held[request_id] = (message, self._start().submit(self._prepare, message))
        return None

    def warm(self) -> None:
        """Read the vocabulary beside everything else, so that the first constrained request need not wait."""
        if (self._folder / "tokenizer.json").is_file():
            self._start()

    def _start(self) -> ThreadPoolExecutor:
        if self._pool is None:
            threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2))
            # Why a pool of its own for masks: running sequences must not wait while a grammar is compiled.
            self._masks = ThreadPoolExecutor(threads, thread_name_prefix="masks")
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammars")
            self._vocabulary = self._pool.submit(lambda: Vocabulary(Tokenizer(self._folder)))
        return self._pool

    def released(self, patience: float) -> tuple[list[Submit], list[Failed]]:
        """Requests that are ready now, and those whose grammar can not be used. ``patience``: seconds to wait
        for the first."""
        if not self._held:
            return [], []
        wait([future for _, future in self._held.values()], patience, FIRST_COMPLETED)
        ready, failed = [], []
        for request_id, (message, future) in list(self._held.items()):
            if not future.done():
                continue
            del self._held[request_id]
            error = future.exception()
            if error is None:
                self._tracked[request_id] = future.result()
                self._compute(self._tracked[request_id], None)
                ready.append(message)
            elif isinstance(error, GrammarError):
                failed.append(Failed(request_id, str(error), "invalid_grammar", 400))
            else:
                text = f"the request's constraints could not be prepared: {error}"
                failed.append(Failed(request_id, text, "engine_error", 500))
        return ready, failed

    def _prepare(self, message: Submit) -> _Tracked:
        assert self._vocabulary is not None and message.constraint is not None
        vocabulary = self._vocabulary.result()
        limit = self._room - len(message.prompt_token_ids)
        if message.params.max_tokens is not None:
            limit = min(limit, message.params.max_tokens)
        prototype = self._compiled(vocabulary, message.constraint)
        sequence = Constrained(vocabulary, message.constraint, prototype, limit)
        return _Tracked(sequence, np.zeros(vocabulary.num_words, np.int32))

    def _compiled(self, vocabulary: Vocabulary, constraint: Constraint) -> llguidance.LLMatcher | None:
        grammar = constraint.grammar
        if not grammar:
            return None
        prototype = self._grammars.get(grammar)
        if prototype is None:
            prototype = self._grammars[grammar] = compile_grammar(vocabulary, grammar)
            while len(self._grammars) > MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        return prototype

    # ---- steps ---------------------------------------------------------------------------------------------

    def masks(self, seqs: Sequence[ScheduledSeq]) -> list[Mask]:
        """Masks of these sequences; waits for those that are being computed. A sequence that has no allowed
        token gets a mask of zeros, and ``explain`` says why."""
        found: list[Mask] = []
        for seq in seqs:
            tracked = self._tracked.get(seq.request_id) if seq.masked else None
            if tracked is None:
                found.append(None)
                continue
            try:
                found.append(tracked.mask.result())
            except Exception as error:
                if not isinstance(error, GrammarError):
                    log.error("the mask of request %s failed", seq.request_id, exc_info=error)
                tracked.error = error
                self._grammars.clear()  # what a matcher shares with its copies may be unusable now
                found.append(np.zeros_like(tracked.row))
        return found

    def explain(self, sampled: list[SampledToken]) -> list[SampledToken]:
        """The results, with the reason where a mask left no token."""
        if not self._tracked:
            return sampled
        return [self._explained(token) if token.error is not None else token for token in sampled]

    def _explained(self, token: SampledToken) -> SampledToken:
        tracked = self._tracked.get(token.request_id)
        if tracked is None or tracked.error is None:
            return token
        own = isinstance(tracked.error, GrammarError)
        text = str(tracked.error) if own else "its token mask failed"
        return msgspec.structs.replace(token, error=text, forbidden=own)

    def take(self, results: Sequence[Any]) -> None:
        """Follow what a step produced: ``TokenOut`` and ``Failed`` items."""
        if not self._tracked:
            return
        for item in results:
            if isinstance(item, Failed):
                self.drop([item.request_id])
            elif isinstance(item, TokenOut) and (tracked := self._tracked.get(item.request_id)) is not None:
                if item.finish_reason is not None:
                    self.drop([item.request_id])
                else:
                    for token_id in item.token_ids:
                        self._compute(tracked, token_id)

    def _compute(self, tracked: _Tracked, token_id: int | None) -> None:
        assert self._masks is not None
        tracked.mask = self._masks.submit(tracked.step, token_id)

    def drop(self, request_ids: Sequence[str]) -> None:
        """Forget these requests; unknown ids are ignored."""
        for request_id in request_ids:
            self._tracked.pop(request_id, None)
            self._held.pop(request_id, None)

    def clear(self) -> None:
        """Forget all requests."""
        self._tracked.clear()
        self._held.clear()


def with_masks(batch: ScheduledBatch, masks: Masks) -> ScheduledBatch:
    """The batch with the masks of its sequences."""
    if not any(seq.masked and seq.samples for seq in batch.seqs):
        return batch
    seqs = [
        seq if mask is None or not seq.samples else msgspec.structs.replace(seq, mask=mask.tobytes())
        for seq, mask in zip(batch.seqs, masks(batch.seqs), strict=True)
    ]
    return msgspec.structs.replace(batch, seqs=seqs)
