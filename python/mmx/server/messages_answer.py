"""Answers of the Messages API: one message, or the events that build it."""

from __future__ import annotations

from typing import Any

import msgspec

from mmx.server.access import Signer
from mmx.server.choice import Choice, Delta
from mmx.server.errors import ApiError
from mmx.server.generation import Generation
from mmx.server.items import Item, Items, Step
from mmx.server.output import Call
from mmx.server.prepare import new_id
from mmx.server.sse import named_event
from mmx.server.state import REQUEST_ID

PING = named_event({"type": "ping"})
_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}


def stop_fields(choice: Choice) -> dict[str, str | None]:
    """``stop_reason`` and ``stop_sequence``; ApiError if nothing that the client can know of ended it."""
    reason = _STOP_REASONS.get(choice.finish_reason or "")
    if reason is None:
        raise ApiError("server_error", "the request was stopped before its end")
    sequence = choice.stop_reason if isinstance(choice.stop_reason, str) else None
    if sequence is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def usage_of(generation: Generation) -> dict[str, int]:
    """Token counts; what the prefix cache held is not part of ``input_tokens``."""
    (choice,) = generation.choices
    cached = choice.num_cached_tokens
    return {
        "input_tokens": len(generation.job.prompts[0]) - cached,
        "output_tokens": choice.num_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


def _call_id(call: Call) -> str:
    return "toolu_" + call.id.removeprefix("call_")


def message(model: str, generation: Generation, content: list[Any], ending: dict[str, Any]) -> dict[str, Any]:
    """The message object; ``ending`` are its stop fields."""
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **ending,
        "usage": usage_of(generation),
    }


def content_blocks(items: Items, choice: Choice, signer: Signer) -> list[dict[str, Any]]:
    """The finished blocks; a call that was cut off is left out, as it has no valid input."""
    shown = choice.shown_calls()
    blocks: list[dict[str, Any]] = []
    for item in items.all:
        if item.kind == "reasoning":
            blocks.append({"type": "thinking", "thinking": item.text, "signature": signer.sign(item.text)})
        elif item.kind == "content":
            blocks.append({"type": "text", "text": item.text})
        elif item.call is not None and item.call in shown:
            block = {"type": "tool_use", "id": _call_id(item.call), "name": item.call.name}
            blocks.append({**block, "input": msgspec.Raw(item.call.arguments.encode())})
    return blocks


class MessagesWriter:
    """The events of one message. It starts with the first token, when the cached tokens are known."""

    keep_alive: bytes | None = PING

    def __init__(self, model: str, generation: Generation, extension: dict[str, Any]) -> None:
        self._model = model
        self._generation = generation
        self._extension = extension
        self._signer = generation.state.signer
        self._items = Items()
        self._begun = False

    def begin(self) -> bytes:
        return b""

    def write(self, choice: Choice, delta: Delta) -> bytes:
        events = b"".join(map(self._event, self._items.feed(choice, delta)))
        return self._start() + events if events else b""

    def fault(self, error: ApiError) -> bytes:
        return named_event(error.anthropic_object(REQUEST_ID.get()))

    def end(self) -> bytes:
        (choice,) = self._generation.choices
        opening = self._start() + b"".join(map(self._event, self._items.finish()))
        try:
            ending = stop_fields(choice)
        except ApiError as error:
            return opening + self.fault(error)
        return (
            opening
            + named_event({"type": "message_delta", "delta": ending, "usage": usage_of(self._generation)})
            + named_event({"type": "message_stop"})
        )

    def _start(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        empty = message(self._model, self._generation, [], {"stop_reason": None, "stop_sequence": None})
        return named_event({"type": "message_start", "message": {**empty, "mmx": self._extension}})

    def _event(self, step: Step) -> bytes:
        item = step.item
        if step.what == "open":
            return named_event(
                {"type": "content_block_start", "index": item.index, "content_block": _empty_block(item)}
            )
        if step.what == "more":
            return self._delta(item, step.piece)
        signed = b""
        if item.kind == "reasoning":
            signature = {"type": "signature_delta", "signature": self._signer.sign(item.text)}
            signed = named_event({"type": "content_block_delta", "index": item.index, "delta": signature})
        return signed + named_event({"type": "content_block_stop", "index": item.index})

    @staticmethod
    def _delta(item: Item, piece: str) -> bytes:
        if item.kind == "reasoning":
            delta = {"type": "thinking_delta", "thinking": piece}
        elif item.kind == "content":
            delta = {"type": "text_delta", "text": piece}
        else:
            delta = {"type": "input_json_delta", "partial_json": piece}
        return named_event({"type": "content_block_delta", "index": item.index, "delta": delta})


def _empty_block(item: Item) -> dict[str, Any]:
    if item.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if item.kind == "content":
        return {"type": "text", "text": ""}
    assert item.call is not None
    return {"type": "tool_use", "id": _call_id(item.call), "name": item.call.name, "input": {}}
