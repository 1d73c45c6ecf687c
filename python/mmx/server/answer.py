"""Answers as they leave the server: events of a stream, or one object at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from mmx.parsers import CallArgs
from mmx.server.choice import CallPiece, Choice, Delta, TokenEntry
from mmx.server.errors import ApiError
from mmx.server.logprobs import LogprobFormat
from mmx.server.output import Call
from mmx.server.sse import DONE, ChunkTemplate, Tail, event

_encode = msgspec.json.Encoder().encode


def _end(delta: Delta, keep_ids: bool) -> tuple[bytes, bytes]:
    """finish_reason and the members after it, as JSON."""
    more = b',"token_ids":' + _encode(delta.token_ids) if keep_ids else b""
    if delta.finish_reason is None:
        return b"null", more
    return _encode(delta.finish_reason), b',"stop_reason":' + _encode(delta.stop_reason) + more


class Writer(Protocol):
    """Turns deltas into the events of one kind of stream. ``keep_alive`` is the event that serves as its
    sign of life, None for the configured one; a stream ends with either ``fault`` or ``end``."""

    keep_alive: bytes | None

    def begin(self) -> bytes: ...
    def write(self, choice: Choice, delta: Delta) -> bytes: ...
    def fault(self, error: ApiError) -> bytes: ...
    def end(self) -> bytes: ...


class ChunkWriter:
    """What the two kinds of chunks share. ``usage``: its numbers, if a chunk of them ends the stream."""

    keep_alive: bytes | None = None

    def __init__(
        self,
        head: dict[str, object],
        num_choices: int,
        tail: Tail,
        usage: Callable[[], dict[str, object]] | None,
    ) -> None:
        self._templates = [ChunkTemplate(head, index, tail) for index in range(num_choices)]
        self._head = head
        self._usage = usage

    def begin(self) -> bytes:
        return b""

    def fault(self, error: ApiError) -> bytes:
        return event(error.object()) + DONE

    def end(self) -> bytes:
        if self._usage is None:
            return DONE
        return event({**self._head, "choices": [], "usage": self._usage()}) + DONE


class ChatWriter(ChunkWriter):
    """Chat chunks. ``reasoning_keys`` are the names under which thinking goes out; none hides it."""

    def __init__(
        self,
        head: dict[str, object],
        num_choices: int,
        *,
        role: str,
        reasoning_keys: tuple[str, ...],
        details: bool,
        logprobs: LogprobFormat | None,
        keep_ids: bool,
        tail: Tail,
        usage: Callable[[], dict[str, object]] | None,
    ) -> None:
        super().__init__(head, num_choices, tail, usage)
        self._role = b'{"role":%b' % _encode(role)
        self._reasoning_keys = reasoning_keys
        self._details = details
        self._logprobs = logprobs
        self._keep_ids = keep_ids
        self._begun = [False] * num_choices
        # Tokens whose text is not shown go out with the next that has something to show.
        self._hidden: dict[int, Delta] = {}

    def write(self, choice: Choice, delta: Delta) -> bytes:
        if (hidden := self._hidden.pop(choice.index, None)) is not None:
            hidden.entries += delta.entries
            hidden.token_ids += delta.token_ids
            delta.entries, delta.token_ids = hidden.entries, hidden.token_ids
        payload = self._payload(delta)
        if payload is None:
            self._hidden[choice.index] = delta
            return b""
        if not self._begun[choice.index]:
            self._begun[choice.index] = True
            payload = self._role + (b"," if payload != b"{}" else b"") + payload[1:]
        finish, more = _end(delta, self._keep_ids)
        logprobs = self._logprobs.chat(delta.entries) if self._logprobs is not None else None
        return self._templates[choice.index].delta(payload, logprobs, finish, more)

    def _payload(self, delta: Delta) -> bytes | None:
        """The delta object; None when there is nothing to say."""
        if delta.kind == "content":
            return b'{"content":%b}' % _encode(delta.text)
        if delta.kind == "tool_calls":
            return b'{"tool_calls":%b}' % _encode([self._call(call) for call in delta.calls])
        if delta.kind == "reasoning" and self._reasoning_keys:
            fields: dict[str, Any] = dict.fromkeys(self._reasoning_keys, delta.text)
            if self._details:
                fields["reasoning_details"] = [{"type": "reasoning.text", "index": 0, "text": delta.text}]
            return _encode(fields)
        return b"{}" if delta.finish_reason is not None else None

    @staticmethod
    def _call(call: CallPiece) -> dict[str, Any]:
        if isinstance(call, CallArgs):
            return {"index": call.index, "function": {"arguments": call.json_delta}}
        function = {"name": call.name, "arguments": ""}
        return {"index": call.index, "id": call.id, "type": "function", "function": function}


class CompletionWriter(ChunkWriter):
    """Completions chunks; ``echo`` holds the prompt text of each choice, or nothing."""

    def __init__(
        self,
        head: dict[str, object],
        num_choices: int,
        *,
        echo: list[str],
        logprobs: LogprobFormat | None,
        keep_ids: bool,
        tail: Tail,
        usage: Callable[[], dict[str, object]] | None,
    ) -> None:
        super().__init__(head, num_choices, tail, usage)
        self._echo = echo
        self._logprobs = logprobs
        self._keep_ids = keep_ids

    def write(self, choice: Choice, delta: Delta) -> bytes:
        text = self._echo[choice.index] + delta.text
        self._echo[choice.index] = ""
        finish, more = _end(delta, self._keep_ids)
        logprobs = None
        if self._logprobs is not None:
            logprobs = self._logprobs.completion(choice.index, delta.entries)
        return self._templates[choice.index].text(text, logprobs, finish, more)


class Collected:
    """One choice of an answer without stream: the sum of its deltas."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.entries: list[TokenEntry] = []
        self.token_ids: list[int] = []

    def add(self, delta: Delta) -> None:
        self.entries += delta.entries
        self.token_ids += delta.token_ids
        if delta.kind == "content":
            self.content.append(delta.text)
        elif delta.kind == "reasoning":
            self.reasoning.append(delta.text)

    def message(
        self, role: str, reasoning_keys: tuple[str, ...], details: bool, calls: Sequence[Call]
    ) -> dict[str, Any]:
        """The chat message; content is null when there are only calls."""
        content = "".join(self.content)
        message: dict[str, Any] = {
            "role": role,
            "content": content or (None if calls else ""),
            "refusal": None,
        }
        if self.reasoning and reasoning_keys:
            text = "".join(self.reasoning)
            message.update(dict.fromkeys(reasoning_keys, text))
            if details:
                message["reasoning_details"] = [{"type": "reasoning.text", "index": 0, "text": text}]
        if calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in calls
            ]
        return message
