"""Token ids -> text while they arrive, and stop strings across the borders of those texts."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from mmx.tokenizer.tokenizer import Tokenizer


class Segment(NamedTuple):
    """Text that became visible with ``token_ids``; ``is_control``: one control token and nothing else."""

    text: str
    token_ids: list[int]
    is_control: bool


class IncrementalDetokenizer:
    """Turns ids into text piece by piece; the pieces joined equal ``Tokenizer.decode`` of all ids.

    Bytes of an unfinished UTF-8 character wait for the next token, so each token costs its own bytes only.

    ``skip_special_tokens`` drops special tokens from the text, except those in ``keep``: the ids that an
    output parser has to see whatever the client asked for.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, keep: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids.difference(keep) if skip_special_tokens else frozenset[int]()
        self._controls = frozenset(tokenizer.control_ids.values())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """Text that ``ids`` complete."""
        return "".join(self._text_of(token_id) for token_id in ids)

    def feed_segments(self, ids: Iterable[int]) -> list[Segment]:
        """As `feed`, cut so that each control token is alone: what an id-aware output parser needs.

        Every id appears in exactly one segment, also when its text is empty or still incomplete.
        """
        segments: list[Segment] = []
        for token_id in ids:
            is_control = token_id in self._controls
            if is_control and token_id not in self._skipped:
                # Why: a character cut off by a control token is lost and belongs to the text before it.
                cut_off = self._decoder.decode(b"", final=True)
                if cut_off:
                    segments.append(Segment(cut_off, [], False))
            text = self._text_of(token_id)
            if is_control or not segments or segments[-1].is_control:
                segments.append(Segment(text, [token_id], is_control))
            else:
                last = segments[-1]
                segments[-1] = Segment(last.text + text, [*last.token_ids, token_id], False)
        return segments

    def finish(self) -> str:
        """The rest: U+FFFD if the output ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)

    def _text_of(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))


class StopStrings:
    """Finds the first stop string in text that arrives in pieces.

    The match that is complete first wins, among those the longest, so the result does not depend on where
    the pieces were cut. Text that may still become a stop string is held back.
    """

    def __init__(self, stop: Sequence[str], *, include_stop_str: bool = False) -> None:
        if any(not text for text in stop):
            raise ValueError("stop: each stop string must have at least one character")
        self._stop = tuple(stop)
        self._include = include_stop_str
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str, *, release: bool = False) -> str:
        """Text that may be shown now; empty once ``matched`` is set.

        ``release``: hold nothing back afterwards, so that a control token reaches the parser in one piece (a
        stop string can then end in this text, but not begin in it).
        """
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._include else start]
        num_held = 0 if release else self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """The text held back, which can not become a stop string any more."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for num_held in range(min(longest, len(text)), 0, -1):
            if text.endswith(tuple(stop[:num_held] for stop in self._stop if len(stop) > num_held)):
                return num_held
        return 0
