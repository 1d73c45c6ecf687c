"""What a parser reports, and the message that a sequence of reports adds up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More text of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its name is complete. ``index`` counts the calls of the message from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArgs:
    """More JSON text of the arguments of call ``index``."""

    index: int
    json_delta: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call ends.

    ``arguments``: JSON text of the whole object, each key once. The deltas of a complete call add up to JSON
    of the same value; where the model repeated a key they repeat it too, and the last one holds.
    ``complete`` is false if the output ended inside a value: ``arguments`` then holds the finished parameters
    only, while the deltas may stop in the middle of the unfinished one.
    """

    index: int
    arguments: str
    complete: bool


Event = Reasoning | Content | CallStart | CallArgs | CallEnd


@dataclass(slots=True)
class ParsedCall:
    id: str
    name: str
    arguments: str = "{}"
    complete: bool = False


@dataclass(slots=True)
class ParsedMessage:
    """A whole answer. ``reasoning`` and ``content`` are null if there is none."""

    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[ParsedCall] = field(default_factory=list)

    def finish_reason(self, engine_finish: str) -> str:
        """``tool_calls`` if the engine stopped by itself and there is a call, else what the engine says."""
        return "tool_calls" if engine_finish == "stop" and self.tool_calls else engine_finish


def collect(events: Iterable[Event]) -> ParsedMessage:
    """The message that ``events`` of one answer describe."""
    message = ParsedMessage()
    for event in events:
        match event:
            case Reasoning(text):
                message.reasoning = (message.reasoning or "") + text
            case Content(text):
                message.content = (message.content or "") + text
            case CallStart(_, call_id, name):
                message.tool_calls.append(ParsedCall(call_id, name))
            case CallEnd(index, arguments, complete):
                message.tool_calls[index].arguments = arguments
                message.tool_calls[index].complete = complete
            case CallArgs():
                pass
    return message
