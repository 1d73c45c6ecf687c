"""MiniMax M2.5 / M2.7::

    R⏎</think>⏎⏎C⏎<minimax:tool_call>⏎
    <invoke name="f">⏎<parameter name="k">v</parameter>⏎</invoke>⏎</minimax:tool_call>

The thought is open from the start; a call block ends it too. Text between the tags of a block is dropped,
text around blocks is content, calls outside a block are content. Where token ids are known, the thought and
block tags count only as single tokens.

Exactly the white space that the chat template adds is removed (one newline before ``</think>`` and before a
call block, two after ``</think>``), so that an answer sent back renders to what the model wrote.
``</parameter>`` closes a value only when a tag follows, so that a file containing it arrives whole;
without it the next ``<parameter name=`` or ``</invoke>`` closes.
"""

from __future__ import annotations

import re

from mmx.parsers.machine import Machine, ParserOptions, bare_name
from mmx.parsers.scanner import HoldBack, MarkerScanner

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
BLOCK_OPEN, BLOCK_CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
END_OF_TURN = "[e~["
MARKERS = (THINK_OPEN, THINK_CLOSE, BLOCK_OPEN, BLOCK_CLOSE, END_OF_TURN)

_THINK, _END_THINK, _BLOCK, _END_BLOCK = "\ud800", "\ud801", "\ud802", "\ud803"
_CHARS = {
    THINK_OPEN: _THINK,
    THINK_CLOSE: _END_THINK,
    BLOCK_OPEN: _BLOCK,
    BLOCK_CLOSE: _END_BLOCK,
    END_OF_TURN: "",
}
_ANY_MARKER = re.compile("[\ud800-\ud803]")

_INVOKE, _END_INVOKE = "<invoke name=", "</invoke>"
_PARAMETER, _END_PARAMETER = "<parameter name=", "</parameter>"


class _Tags:
    """A set of tags to look for in a buffer that is still growing."""

    def __init__(self, *tags: str) -> None:
        self.tags = tags
        self.pattern = re.compile("|".join(tags))
        self.hold_back = HoldBack(tags)


_IN_BLOCK = _Tags(_INVOKE, _END_BLOCK)
_IN_CALL = _Tags(_PARAMETER, _END_INVOKE, _INVOKE, _END_BLOCK)
_IN_VALUE = _Tags(_END_PARAMETER, _PARAMETER, _END_INVOKE, _END_BLOCK)


class MiniMaxM2Parser(Machine):
    """State machine of M2.5 / M2.7."""

    def __init__(self, options: ParserOptions) -> None:
        scanner = MarkerScanner(_CHARS, options.marker_ids, only_by_id=MARKERS)
        super().__init__(options, scanner, newline_closes=True)
        self._num_newlines_to_drop = 0
        self._searched = 0  # of the buffer, while inside a value
        self._state = self._in_content
        if options.in_thought and options.thoughts != "off":
            self._state = self._in_thought
            self._must_open = options.thoughts == "inline"
        else:
            self._must_open = False
            self._end_thought()

    def _in_thought(self) -> bool:
        if not self._buffer:
            return False
        if self._must_open:
            # The prompt holds the opener; clients of this mode expect the whole thought in the content.
            self._content.write(THINK_OPEN)
            self._must_open = False
        found = _ANY_MARKER.search(self._buffer)
        self._write_thought(self._take(found.start() if found else len(self._buffer), is_thought=True))
        if found is None:
            return False
        marker = found.group()
        if marker == _END_THINK:
            self._close_thought(self._take(1))
            self._state = self._in_content
        elif marker == _BLOCK and self._options.calls != "off":
            self._reasoning.end_at_marker()
            self._end_thought()
            self._open_block()
        elif marker == _THINK and self._options.thoughts == "split":
            self._take(1)
        else:
            self._write_thought(self._take(1, is_thought=True))
        return True

    def _write_thought(self, text: str) -> None:
        (self._content if self._options.thoughts == "inline" else self._reasoning).write(text)

    def _close_thought(self, tag: str) -> None:
        if self._options.thoughts == "inline":
            self._content.write(tag)
        else:
            self._reasoning.end_at_marker()
            self._num_newlines_to_drop = 2
        self._end_thought()

    def _in_content(self) -> bool:
        if not self._buffer:
            return False
        if self._num_newlines_to_drop:
            if self._buffer[0] == "\n":
                self._take(1)
                self._num_newlines_to_drop -= 1
                return True
            self._num_newlines_to_drop = 0
        found = _ANY_MARKER.search(self._buffer)
        self._content.write(self._take(found.start() if found else len(self._buffer)))
        if found is None:
            return False
        marker = found.group()
        if marker == _BLOCK and self._options.calls != "off":
            self._open_block()
        elif (marker == _END_THINK and self._options.thoughts == "split") or (
            marker == _END_BLOCK and self._options.calls != "off"
        ):
            self._take(1)
        else:
            self._content.write(self._take(1))
        return True

    def _open_block(self) -> None:
        self._take(1)
        self._content.end_at_marker()
        self._state = self._in_block

    def _in_block(self) -> bool:
        found = _IN_BLOCK.pattern.search(self._buffer)
        if found is None:
            self._take(len(self._buffer) - _IN_BLOCK.hold_back.held(self._buffer))
            return False
        self._take(found.end())
        self._state = self._in_content if found.group() == _END_BLOCK else self._in_function_name
        return True

    def _in_function_name(self) -> bool:
        end = self._buffer.find(">")
        if end < 0:
            return False
        self._start_call(bare_name(self._take(end + 1)[:-1]), nested=False, drop_unknown=True)
        self._state = self._in_call
        return True

    def _in_call(self) -> bool:
        found = _IN_CALL.pattern.search(self._buffer)
        if found is None:
            self._take(len(self._buffer) - _IN_CALL.hold_back.held(self._buffer))
            return False
        self._take(found.end())
        tag = found.group()
        if tag == _PARAMETER:
            self._state = self._in_parameter_name
            return True
        self._end_call()
        if tag == _INVOKE:
            self._state = self._in_function_name
        else:
            self._state = self._in_content if tag == _END_BLOCK else self._in_block
        return True

    def _in_parameter_name(self) -> bool:
        end = self._buffer.find(">")
        if end < 0:
            return False
        name = bare_name(self._take(end + 1)[:-1])
        if self._call is not None:
            self._call.open(name)
        self._searched = 0
        self._state = self._in_value
        return True

    def _in_value(self) -> bool:
        found = _IN_VALUE.pattern.search(self._buffer, self._searched)
        if found is None:
            self._write_value(len(self._buffer) - _IN_VALUE.hold_back.held(self._buffer))
            return False
        closes = self._closes_value(found.group(), self._buffer[found.end() :].lstrip())
        if closes is False:
            self._searched = found.end()
            return True
        self._write_value(found.start())
        if closes is None:
            return False
        if found.group() == _END_PARAMETER:
            self._take(len(_END_PARAMETER))
        if self._call is not None:
            self._call.close()
        self._state = self._in_call
        return True

    def _closes_value(self, tag: str, rest: str) -> bool | None:
        """Whether ``tag``, followed by ``rest``, ends the value or is part of it; null if not known yet."""
        if tag == _END_BLOCK:
            # A value may quote the block closer; one that ends the output closes all that is open.
            return False if rest else (self._finished or None)
        if tag != _END_PARAMETER or rest.startswith(_IN_CALL.tags):
            return True
        if not any(following.startswith(rest) for following in _IN_CALL.tags):
            return False
        return self._finished or None

    def _write_value(self, num_chars: int) -> None:
        text = self._take(num_chars)
        self._searched = 0
        if self._call is not None and text:
            self._call.text(text)

    def _end(self) -> None:
        if self._state == self._in_thought:
            self._scanner.ledger.leave(0, is_thought=True)
        self._reasoning.end(drop_blank=True)
        self._content.end(drop_blank=True)
        self._end_call(cut=bool(self._buffer) or self._state == self._in_parameter_name)
