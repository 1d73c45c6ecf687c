"""MiniMax M3::

    <mm:think>R</mm:think>C NS<tool_call>⏎NS<invoke name="f">NS<key>v NS</key>NS</invoke>⏎NS</tool_call>

NS is the separator token ``]<]minimax[>[``; only a tag directly behind it is a tag. Thought tags count only
at the start of the output (the closing one ends the thought); a call block ends an open thought. All markers
are also found when ordinary tokens spell them.

Malformed calls: a closing tag that names an outer element closes everything inside it, any other wrong
closing tag closes the innermost element, and the end of the call closes what is open: the values written so
far are kept, since they may have been streamed already. Elements deeper than 128 are left out.
"""

from __future__ import annotations

import re

from mmx.parsers.machine import Machine, ParserOptions, bare_name
from mmx.parsers.scanner import MarkerScanner

THINK_OPEN, THINK_CLOSE = "<mm:think>", "</mm:think>"
SEPARATOR = "]<]minimax[>["
END_OF_TURN = "[e~["
MARKERS = (THINK_OPEN, THINK_CLOSE, SEPARATOR, "<tool_call>", "</tool_call>", END_OF_TURN)

_THINK, _END_THINK, _NS = "\ud800", "\ud801", "\ud802"
_CHARS = {THINK_OPEN: _THINK, THINK_CLOSE: _END_THINK, SEPARATOR: _NS, END_OF_TURN: ""}

_BLOCK, _END_BLOCK = "<tool_call>", "</tool_call>"
_INVOKE = "<invoke name="
_MAX_DEPTH = 128
_MAX_TAG = 1024  # characters; a longer run without ">" is text

_ENDS_THOUGHT = re.compile(f"[{_END_THINK}{_NS}]")
_TAG = re.compile(f"<[^>{_NS}]{{1,{_MAX_TAG}}}>")
_TAG_SO_FAR = re.compile(f"(?:<[^>{_NS}]{{0,{_MAX_TAG}}})?")


class MiniMaxM3Parser(Machine):
    """State machine of M3."""

    def __init__(self, options: ParserOptions) -> None:
        scanner = MarkerScanner(_CHARS, options.marker_ids, only_by_id=(END_OF_TURN,))
        super().__init__(options, scanner, newline_closes=False)
        self._seen_close = False
        self._num_too_deep = 0
        self._at_thought_start = True
        if options.thoughts == "off":
            self._leave_thought()
        elif options.in_thought:
            self._state = self._in_thought
        else:
            self._state = self._at_start if options.at_start else self._in_content
            if not options.at_start:
                self._end_thought()

    def _leave_thought(self) -> None:
        self._end_thought()
        self._state = self._in_content

    def _at_start(self) -> bool:
        """Before the first text: a thought may open here, and one stray closing tag is dropped."""
        rest = self._buffer.lstrip()
        if not rest and not self._finished:
            return False
        if rest[:1] == _THINK:
            self._take(len(self._buffer) - len(rest) + 1)
            self._state = self._in_thought
        elif rest[:1] == _END_THINK and not self._seen_close:
            self._take(len(self._buffer) - len(rest) + 1)
            self._seen_close = True
        else:
            self._leave_thought()
        return True

    def _in_thought(self) -> bool:
        if self._at_thought_start:
            rest = self._buffer.lstrip()
            if not rest and not self._finished:
                return False
            if rest[:1] == _THINK:
                self._take(len(self._buffer) - len(rest) + 1)
            self._at_thought_start = False
        for found in _ENDS_THOUGHT.finditer(self._buffer):
            if found.group() == _END_THINK:
                self._emit_thought(found.start())
                self._take(1)
                self._leave_thought()
                return True
            opens = self._block_opens(found.start())
            if opens is not False:
                self._emit_thought(found.start())
                if opens:
                    self._end_thought()
                    self._open_block()
                return bool(opens)
        self._emit_thought(len(self._buffer))
        return False

    def _emit_thought(self, num_chars: int) -> None:
        text = self._take(num_chars, is_thought=True)
        if text:
            self._emit_reasoning(text)

    def _in_content(self) -> bool:
        position = self._buffer.find(_NS)
        while position >= 0:
            opens = self._block_opens(position)
            if opens is not False:
                self._content.write(self._take(position))
                if opens:
                    self._open_block()
                return bool(opens)
            position = self._buffer.find(_NS, position + 1)
        self._content.write(self._take(len(self._buffer)))
        return False

    def _block_opens(self, position: int) -> bool | None:
        """Whether the separator at ``position`` opens a call block; null if not known yet."""
        return self._tag_is(position, _BLOCK) if self._options.calls != "off" else False

    def _tag_is(self, position: int, tag: str) -> bool | None:
        rest = self._buffer[position + 1 : position + 1 + len(tag)]
        if rest == tag:
            return True
        return None if tag.startswith(rest) and not self._finished else False

    def _open_block(self) -> None:
        self._take(1 + len(_BLOCK))
        self._content.end_at_marker()
        self._state = self._in_block

    def _in_block(self) -> bool:
        position = self._buffer.find(_NS)
        self._take(position if position >= 0 else len(self._buffer))
        if position < 0:
            return False
        for tag, state in ((_INVOKE, self._in_function_name), (_END_BLOCK, self._in_content)):
            matches = self._tag_is(0, tag)
            if matches is None:
                return False
            if matches:
                self._take(1 + len(tag))
                self._state = state
                return True
        self._take(1)
        return True

    def _in_function_name(self) -> bool:
        end = self._buffer.find(">")
        if end < 0:
            return False
        self._open_call(self._take(end + 1)[:-1])
        return True

    def _open_call(self, name: str) -> None:
        self._start_call(bare_name(name), nested=True, drop_unknown=False)
        self._num_too_deep = 0
        self._state = self._in_arguments

    def _in_arguments(self) -> bool:
        call = self._call
        assert call is not None, "calls of M3 are never dropped"
        names = call.open_names
        position = self._buffer.find(_NS)
        text = self._take(position if position >= 0 else len(self._buffer))
        if text and names and not self._num_too_deep:
            call.text(text)
        if position < 0:
            return False
        tag_end = self._tag_end()
        if tag_end is None:
            return False
        if tag_end == 0:
            literal = self._take(1)
            if names and not self._num_too_deep:
                call.text(literal)
            return True
        tag = self._take(tag_end + 1)[len(SEPARATOR) + 1 : -1]
        if tag[0] == "/":
            self._close_tag(tag[1:].strip(), names)
        elif not names and tag.startswith(_INVOKE[1:]):
            self._end_call()
            self._open_call(tag[len(_INVOKE) - 1 :])
        elif len(names) >= _MAX_DEPTH:
            self._num_too_deep += 1
        else:
            call.open(tag)
        return True

    def _tag_end(self) -> int | None:
        """Position of the ``>`` of the tag behind the separator that the buffer begins with; 0 if no tag
        follows; null if not known yet."""
        found = _TAG.match(self._buffer, 1)
        if found is not None:
            return found.end() - 1
        return None if _TAG_SO_FAR.fullmatch(self._buffer, 1) else 0

    def _close_tag(self, name: str, names: list[str]) -> None:
        call = self._call
        assert call is not None, "calls of M3 are never dropped"
        if self._num_too_deep:
            self._num_too_deep -= 1
            return
        num_to_close = 1
        known = [open_name.strip() for open_name in names]
        if name in known:
            num_to_close = known[::-1].index(name) + 1
        elif name in ("invoke", "tool_call"):
            num_to_close = len(names)
            self._state = self._in_block if name == "invoke" else self._in_content
        for _ in range(min(num_to_close, len(names))):
            call.close()
        if self._state != self._in_arguments:
            self._end_call()

    def _end(self) -> None:
        if self._state == self._in_thought:
            self._scanner.ledger.leave(0, is_thought=True)
        self._content.end(drop_blank=self._num_calls > 0)
        self._end_call(cut=bool(self._buffer))
