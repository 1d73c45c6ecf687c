"""One answer as a row of items - thoughts, texts and calls in the order of their generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mmx.parsers import CallArgs, CallStart
from mmx.server.choice import Choice, Delta, Kind, TokenEntry
from mmx.server.output import Call


class Item:
    """A run of one kind; ``call`` is set for calls, ``entries`` are the tokens of a text."""

    def __init__(self, index: int, kind: Kind, call: Call | None = None) -> None:
        self.index = index
        self.kind = kind
        self.call = call
        self.entries: list[TokenEntry] = []
        self._pieces: list[str] = []

    def add(self, piece: str, entries: list[TokenEntry]) -> None:
        self._pieces.append(piece)
        self.entries += entries

    @property
    def text(self) -> str:
        """What was added so far; for a call its arguments as JSON."""
        return "".join(self._pieces)


class Step(NamedTuple):
    """``item`` opens, grows by ``piece`` or closes."""

    what: Literal["open", "more", "close"]
    item: Item
    piece: str = ""
    entries: tuple[TokenEntry, ...] = ()


class Items:
    """Groups the deltas of one choice; each item closes before the next one opens."""

    def __init__(self) -> None:
        self.all: list[Item] = []
        self._is_open = False

    def feed(self, choice: Choice, delta: Delta) -> Iterator[Step]:
        """The steps that a delta means."""
        if delta.kind == "tool_calls":
            for piece in delta.calls:
                if isinstance(piece, CallStart):
                    assert choice.reader is not None
                    yield from self._open("tool_calls", choice.reader.calls[piece.index])
                elif isinstance(piece, CallArgs):
                    yield self._more(piece.json_delta, [])
        elif delta.kind:
            if not self._is_open or self.all[-1].kind != delta.kind:
                yield from self._open(delta.kind, None)
            yield self._more(delta.text, delta.entries if delta.kind == "content" else [])

    async def collect(self, choice: Choice, deltas: list[Delta]) -> None:
        """Take the deltas of an answer whose steps nobody follows."""
        for delta in deltas:
            for _ in self.feed(choice, delta):
                pass

    def finish(self) -> Iterator[Step]:
        """Close what is open."""
        if self._is_open:
            self._is_open = False
            yield Step("close", self.all[-1])

    def _open(self, kind: Kind, call: Call | None) -> Iterator[Step]:
        yield from self.finish()
        self.all.append(Item(len(self.all), kind, call))
        self._is_open = True
        yield Step("open", self.all[-1])

    def _more(self, piece: str, entries: list[TokenEntry]) -> Step:
        self.all[-1].add(piece, entries)
        return Step("more", self.all[-1], piece, tuple(entries))
