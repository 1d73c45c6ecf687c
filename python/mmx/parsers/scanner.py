"""From text and token ids to text in which each marker is one character.

A marker becomes a lone surrogate: decoded UTF-8 never contains one, so nothing the model writes can be
mistaken for it. The grammar behind then needs no look-ahead for markers.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence

_SURROGATE = re.compile("[\ud800-\udfff]")


class HoldBack:
    """Finds how much of the end of a text may still become one of ``words``."""

    __slots__ = ("_first", "_longest", "_prefixes")

    def __init__(self, words: Sequence[str]) -> None:
        self._longest = max((len(word) - 1 for word in words), default=0)
        self._prefixes = [tuple(w[:n] for w in words if len(w) > n) for n in range(self._longest + 1)]
        self._first = {word[0] for word in words}

    def held(self, text: str) -> int:
        """Length of the longest end of ``text`` that is a true beginning of a word."""
        tail = text[-self._longest :] if self._longest else ""
        for start, char in enumerate(tail):
            if char in self._first and tail.endswith(self._prefixes[len(tail) - start]):
                return len(tail) - start
        return 0


class TokenLedger:
    """Counts the tokens of the thought while their text passes through the hold-backs.

    Tokens enter with the width of their text; widths leave in the same order, marked as thought or not. A
    token counts when any part of it belongs to the thought. Several tokens that entered together and are
    split count in proportion.
    """

    def __init__(self) -> None:
        self.num_thought = 0
        self._open = True
        self._waiting: deque[tuple[int, int]] = deque()  # (width, num_tokens)
        self._passed = 0  # of the first waiting entry: width that left,
        self._passed_thought = 0  # and how much of it was thought

    def enter(self, width: int, num_tokens: int) -> None:
        if self._open:
            self._waiting.append((width, num_tokens))

    def leave(self, width: int, is_thought: bool) -> None:
        while self._waiting:
            entry_width, num_tokens = self._waiting[0]
            step = min(width, entry_width - self._passed)
            if step == 0 and entry_width > self._passed:
                return
            width -= step
            self._passed += step
            self._passed_thought += step * is_thought
            if self._passed < entry_width:
                return
            self._waiting.popleft()
            if entry_width == 0:
                self.num_thought += num_tokens * is_thought
            else:
                self.num_thought += -(-num_tokens * self._passed_thought // entry_width)
            self._passed = self._passed_thought = 0

    def close(self) -> None:
        """The thought is over: nothing that enters or leaves from now on matters."""
        self._waiting.clear()
        self._open = False


class MarkerScanner:
    """Replaces the markers of a family by their characters.

    ``chars``: marker text -> character; an empty one drops the marker. ``marker_ids``: marker text -> token
    id, as far as known. ``only_by_id``: markers that count only as the single token, as soon as token ids
    accompany the text; the same characters spelled by other tokens are text then.
    """

    def __init__(
        self, chars: Mapping[str, str], marker_ids: Mapping[str, int], only_by_id: Sequence[str]
    ) -> None:
        self._chars = dict(chars)
        self._text_of = {marker_ids[text]: text for text in chars if text in marker_ids}
        self._in_text = _TextMatcher(list(chars))
        strict = set(only_by_id) & marker_ids.keys()
        self._in_text_with_ids = _TextMatcher([text for text in chars if text not in strict])
        self._shown = {ord(char): text for text, char in chars.items() if char}
        self._held = ""
        self.ledger = TokenLedger()

    def show(self, text: str) -> str:
        """Inverse of the replacement: markers as the model wrote them."""
        return text.translate(self._shown) if not text.isascii() else text

    def feed(self, text: str, token_ids: Sequence[int] | None, finished: bool) -> str:
        """Text with markers replaced; what may be the beginning of a marker waits for the next call."""
        text = _SURROGATE.sub("\ufffd", text) if not text.isascii() else text
        out = self._scan(text, self._in_text) if token_ids is None else self._scan_with_ids(text, token_ids)
        if finished:
            out, self._held = out + self._held, ""
        return out

    def _scan_with_ids(self, text: str, token_ids: Sequence[int]) -> str:
        out: list[str] = []
        position = 0
        num_before = 0
        for token_id in token_ids:
            marker = self._text_of.get(token_id)
            if marker is None:
                num_before += 1
                continue
            # A marker whose text the detokenizer dropped stands behind the text that came with it.
            start = text.find(marker, position)
            stop = start + len(marker)
            if start < 0:
                start = stop = len(text)
            if start > position or num_before:
                self.ledger.enter(start - position, num_before)
                out.append(self._scan(text[position:start], self._in_text_with_ids))
            out += (self._held, self._chars[marker])
            self._held = ""
            if self._chars[marker]:
                self.ledger.enter(len(marker), 1)
            position, num_before = stop, 0
        if position < len(text) or num_before:
            self.ledger.enter(len(text) - position, num_before)
            out.append(self._scan(text[position:], self._in_text_with_ids))
        return "".join(out)

    def _scan(self, text: str, matcher: _TextMatcher) -> str:
        text = self._held + text
        if not matcher.can_begin(text):
            self._held = ""
            return text
        text, num_held = matcher.replace(text, self._chars)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


class _TextMatcher:
    """Finds markers spelled in text."""

    def __init__(self, markers: list[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, markers)) or r"(?!)")
        self._hold_back = HoldBack(markers)
        firsts = "".join(sorted({re.escape(marker[0]) for marker in markers}))
        self.can_begin = re.compile(f"[{firsts}]" if firsts else r"(?!)").search

    def replace(self, text: str, chars: Mapping[str, str]) -> tuple[str, int]:
        """``text`` with markers replaced and how many characters of its end may begin another."""
        text = self._pattern.sub(lambda found: chars[found.group()], text)
        return text, self._hold_back.held(text)
