"""The parser of an output without thoughts and calls: all of it is content."""

from __future__ import annotations

from mmx.parsers.machine import Machine, ParserOptions
from mmx.parsers.scanner import MarkerScanner


class PlainParser(Machine):
    """Passes text through."""

    def __init__(self) -> None:
        options = ParserOptions(thoughts="off", calls="off")
        super().__init__(options, MarkerScanner({}, {}, ()), newline_closes=False)
        self._end_thought()
        self._state = self._in_content

    def _in_content(self) -> bool:
        if self._buffer:
            self._emit_content(self._take(len(self._buffer)))
        return False

    def _end(self) -> None:
        """Nothing is ever held."""
