"""What a server sends, as times of events that carry tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Block(msgspec.Struct):
    """A content block of Anthropic's API, or a part of one."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    name: str | None = None
    input: Any = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    """An event or a whole answer of any of the APIs; ``type`` and what follows is Anthropic's."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    type: str | None = None
    message: _Message | str | None = None
    delta: _Block | None = None
    content_block: _Block | None = None
    content: list[_Block] = []


_decode = msgspec.json.Decoder(_Event).decode


class TokenEvent(msgspec.Struct, frozen=True):
    """``time`` in seconds; ``num_tokens`` is None where the server does not say."""

    time: float
    text: str
    num_tokens: int | None


class Answer(msgspec.Struct):
    """One request as the client saw it. Times in seconds of the client's clock.

    ``arrival``: when it was due; ``start``: just before it was written; ``end``: last byte or failure.
    ``input_tokens``, ``output_tokens``, ``cached_tokens``: as the server counts, None if it does not say.
    """

    arrival: float
    start: float
    end: float = 0.0
    events: list[TokenEvent] = []
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def ttft(self) -> float:
        """Start to the first event with a token."""
        return self.events[0].time - self.start

    @property
    def latency(self) -> float:
        """Start to the last event with a token."""
        return self.events[-1].time - self.start

    @property
    def gaps(self) -> list[float]:
        """Between events with tokens."""
        times = [event.time for event in self.events]
        return [b - a for a, b in pairwise(times)]


class AnswerReader:
    """Fills an `Answer` from the bytes of a stream, however they are cut."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tail = b""
        self._finished = False
        self._num_tokens = 0

    def feed(self, now: float, data: bytes) -> None:
        """Bytes that arrived at ``now``. ValueError if an event is no JSON."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(now, line[5:].strip())

    def whole(self, now: float, body: bytes) -> None:
        """The body of an answer that is not streamed: its tokens all come at ``now``."""
        self._event(now, body)
        self.end()

    def end(self) -> None:
        """No more bytes follow; an answer that is not complete becomes an error."""
        if self._answer.error:
            return
        if not self._finished:
            self._answer.error = "the stream ended before the answer did"
        elif not self._answer.events:
            self._answer.error = "no event carried a token"

    def _event(self, now: float, data: bytes) -> None:
        if data == b"[DONE]":
            self._finished = True
            return
        event = _decode(data)
        if event.error is not None:
            self._answer.error = f"the server reports {msgspec.json.encode(event.error).decode()}"
        usage = event.usage or (event.message.usage if isinstance(event.message, _Message) else None)
        total = self._usage(usage) if usage is not None else None
        if event.type is not None:
            self._anthropic(now, event)
        if not event.choices:
            return
        choice = event.choices[0]
        self._finished |= choice.finish_reason is not None
        text, carries = _payload(choice)
        num_tokens = None
        if total is not None:
            num_tokens, self._num_tokens = total - self._num_tokens, total
        elif choice.token_ids is not None:
            num_tokens = len(choice.token_ids)
        if carries or num_tokens:
            self._answer.events.append(TokenEvent(now, text, num_tokens))

    def _anthropic(self, now: float, event: _Event) -> None:
        """The start of a text block carries no token; that of a call does, its name."""
        self._finished |= event.type in ("message_stop", "message")
        opened = [event.content_block] if event.content_block is not None and event.content_block.name else []
        parts = [event.delta] if event.type == "content_block_delta" and event.delta is not None else opened
        text = "".join(_block_text(block) for block in (*parts, *event.content))
        if text:
            self._answer.events.append(TokenEvent(now, text, None))

    def _usage(self, usage: _Usage) -> int | None:
        """Keep the numbers; returns output tokens so far where each event tells them. Anthropic's input
        tokens are those that were not read from or written to the cache."""
        answer = self._answer
        if usage.output_tokens is not None:
            answer.output_tokens = usage.output_tokens
        if usage.cache_read_input_tokens is not None:
            answer.cached_tokens = usage.cache_read_input_tokens
        if usage.input_tokens is not None:
            written = usage.cache_creation_input_tokens or 0
            answer.input_tokens = usage.input_tokens + (answer.cached_tokens or 0) + written
        if usage.prompt_tokens is not None:
            answer.input_tokens = usage.prompt_tokens
        if usage.prompt_tokens_details is not None:
            answer.cached_tokens = usage.prompt_tokens_details.cached_tokens
        if usage.completion_tokens is not None:
            answer.output_tokens = usage.completion_tokens
        return usage.completion_tokens


def _block_text(block: _Block) -> str:
    text = (block.thinking or "") + (block.text or "") + (block.name or "") + (block.partial_json or "")
    return text + (msgspec.json.encode(block.input).decode() if block.input else "")


def _payload(choice: _Choice) -> tuple[str, bool]:
    """Text of an event, and whether it carries a token.

    A completions event without text and without an end stands for a token that is part of a character;
    a chat event without text may be a mere role.
    """
    delta = choice.delta or choice.message
    if delta is None:
        text = choice.text or ""
        return text, bool(text) or (choice.text is not None and choice.finish_reason is None)
    text = (delta.reasoning or delta.reasoning_content or "") + (delta.content or "")
    calls = [call.get("function") or {} for call in delta.tool_calls or ()]
    text += "".join((call.get("name") or "") + (call.get("arguments") or "") for call in calls)
    return text, bool(text or calls)
