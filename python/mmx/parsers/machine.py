"""What the state machines of both families share: input, hold-back, text channels and calls."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmx.parsers.arguments import Arguments
from mmx.parsers.events import CallArgs, CallEnd, CallStart, Content, Event, Reasoning
from mmx.parsers.scanner import MarkerScanner
from mmx.parsers.schema import Schema

# Characters worked on at once. Why: the buffer is cut at its front, which costs its length each time.
_PORTION = 4096

ThoughtMode = Literal["split", "inline", "off"]
CallMode = Literal["parse", "discard", "off"]
_TextKind = Literal["content", "reasoning", "arguments"]


def new_call_id() -> str:
    return "call_" + secrets.token_hex(12)


@dataclass(frozen=True)
class ParserOptions:
    """How one answer is read.

    ``thoughts``: ``split`` reports them as reasoning, ``inline`` leaves them in the content with their tags,
    ``off`` knows no thought at all. ``calls``: ``parse`` reports them, ``discard`` removes their text,
    ``off`` leaves it in the content. ``in_thought``: the prompt has already opened the thought.
    ``at_start``: nothing of the answer stands in the prompt yet. ``schemas``: parameter schema by function
    name, null if the request names no tools. ``marker_ids``: marker text -> token id.
    ``new_call_id`` makes the ids of calls.
    """

    thoughts: ThoughtMode = "split"
    calls: CallMode = "parse"
    in_thought: bool = False
    at_start: bool = True
    schemas: Mapping[str, Schema] | None = None
    marker_ids: Mapping[str, int] = field(default_factory=dict)
    new_call_id: Callable[[], str] = new_call_id


class TextChannel:
    """Text of the content or of the thought, without the white space that belongs to the format.

    Blank text is held until other text follows. ``newline_closes``: one newline before a marker is part of
    the format (M2 writes it before ``</think>`` and before a call), so it waits for what comes next.
    """

    def __init__(self, emit: Callable[[str], None], *, newline_closes: bool) -> None:
        self._emit = emit
        self._newline_closes = newline_closes
        self._held = ""
        self._has_text = False

    def write(self, text: str) -> None:
        text = self._held + text
        self._held = ""
        if not self._has_text:
            if not text or text.isspace():
                self._held = text
                return
            self._has_text = True
        if self._newline_closes and text.endswith("\n"):
            text, self._held = text[:-1], "\n"
        if text:
            self._emit(text)

    def end_at_marker(self) -> None:
        """A marker follows: what is held is format."""
        self._held = ""
        self._has_text = False

    def end(self, *, drop_blank: bool) -> None:
        """The output ends: what is held is text; ``drop_blank``: unless it is all there is."""
        if self._held and (self._has_text or not drop_blank):
            self._emit(self._held)
        self._held = ""


class Machine(ABC):
    """Incremental parser of one answer; see the package for its use.

    A subclass sets ``_state`` to a method that consumes a part of ``_buffer`` and returns whether it made
    progress; ``_finished`` tells it that no more input comes. The result does not depend on how the input was
    cut.
    """

    _state: Callable[[], bool]

    def __init__(self, options: ParserOptions, scanner: MarkerScanner, *, newline_closes: bool) -> None:
        self._options = options
        self._scanner = scanner
        self._buffer = ""
        self._finished = False
        self._events: list[Event] = []
        self._texts: list[str] = []
        self._text_kind: _TextKind | None = None
        self._num_calls = 0
        self._call: Arguments | None = None
        self._content = TextChannel(self._emit_content, newline_closes=newline_closes)
        self._reasoning = TextChannel(self._emit_reasoning, newline_closes=newline_closes)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens inside the thought so far, markers excluded; 0 if no token ids were fed."""
        return self._scanner.ledger.num_thought

    def feed(
        self, text_delta: str, token_ids: Sequence[int] | None = None, finished: bool = False
    ) -> list[Event]:
        """Events of the next piece of output.

        ``token_ids``: the ids that ``text_delta`` came with, null when the caller has none. With ids, a
        marker that is a single token should be alone in its delta (``IncrementalDetokenizer.feed_segments``);
        in a longer delta its first spelling is taken for it. Text without ids of its own (the rest that a
        detokenizer flushes) comes with an empty list. ``finished``: the output ends here.
        """
        if self._finished:
            raise ValueError("feed: the output was finished before")
        self._events = []
        text = self._scanner.feed(text_delta, token_ids, finished)
        for start in range(0, len(text), _PORTION):
            self._buffer += text[start : start + _PORTION]
            while self._state():
                pass
        if finished:
            self._finished = True
            while self._state():
                pass
            self._end()
        self._flush()
        return self._events

    @abstractmethod
    def _end(self) -> None:
        """Flushes after the last input; the state method has consumed all it could."""

    # ---- input -----------------------------------------------------------------------------------------

    def _take(self, num_chars: int, is_thought: bool = False) -> str:
        """The next ``num_chars`` of the buffer as the model wrote them, removed from it."""
        taken = self._scanner.show(self._buffer[:num_chars])
        self._buffer = self._buffer[num_chars:]
        self._scanner.ledger.leave(len(taken), is_thought)
        return taken

    def _end_thought(self) -> None:
        self._scanner.ledger.close()

    # ---- output ----------------------------------------------------------------------------------------

    def _emit_content(self, text: str) -> None:
        self._emit_text("content", text)

    def _emit_reasoning(self, text: str) -> None:
        self._emit_text("reasoning", text)

    def _emit_arguments(self, json_delta: str) -> None:
        self._emit_text("arguments", json_delta)

    def _emit_text(self, kind: _TextKind, text: str) -> None:
        if self._text_kind != kind:
            self._flush()
            self._text_kind = kind
        self._texts.append(text)

    def _emit(self, event: Event) -> None:
        self._flush()
        self._events.append(event)

    def _flush(self) -> None:
        """Turn neighbouring texts of one kind into one event."""
        text = "".join(self._texts)
        match self._text_kind:
            case "content":
                self._events.append(Content(text))
            case "reasoning":
                self._events.append(Reasoning(text))
            case "arguments":
                self._events.append(CallArgs(self._num_calls - 1, text))
        self._texts.clear()
        self._text_kind = None

    # ---- calls -----------------------------------------------------------------------------------------

    def _start_call(self, name: str, *, nested: bool, drop_unknown: bool) -> None:
        schemas = self._options.schemas
        known = schemas is None or name in schemas
        if self._options.calls == "discard" or (drop_unknown and not known):
            self._call = None
            return
        self._emit(CallStart(self._num_calls, self._options.new_call_id(), name))
        self._num_calls += 1
        schema = schemas[name] if schemas is not None and name in schemas else Schema(None, None)
        self._call = Arguments(schema, self._emit_arguments, nested=nested)

    def _end_call(self, *, cut: bool = False) -> None:
        """``cut``: the output ended inside a tag of the call."""
        if self._call is not None:
            arguments, complete = self._call.finish()
            self._emit(CallEnd(self._num_calls - 1, arguments, complete and not cut))
        self._call = None


def bare_name(text: str) -> str:
    """Name of a function or parameter without the quotes around it."""
    text = text.strip()
    if text[:1] in ("'", '"'):
        text = text[1:].removesuffix(text[0])
    return text


def schemas_of(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Schema] | None:
    """Parameter schemas by function name, of OpenAI tools or of bare ``{name, parameters}`` objects."""
    if not tools:
        return None
    functions = [tool.get("function", tool) for tool in tools]
    return {f["name"]: Schema(f.get("parameters"), f.get("parameters")) for f in functions}
