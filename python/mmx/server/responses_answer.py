"""Answers of the Responses API: the response object and the events that build it."""

from __future__ import annotations

import time
from typing import Any

from mmx.server.choice import Choice, Delta
from mmx.server.errors import ApiError
from mmx.server.generation import Generation
from mmx.server.items import Item, Items, Step
from mmx.server.logprobs import LogprobFormat
from mmx.server.prepare import new_id
from mmx.server.responses_items import seal
from mmx.server.responses_store import Stored
from mmx.server.sse import named_event

_PREFIX = {"reasoning": "rs_", "content": "msg_", "tool_calls": "fc_"}
_STATUS = {"stop": "completed", "tool_calls": "completed", "length": "incomplete", "abort": "cancelled"}


class ResponseBuilder:
    """Grows the output of one response. ``stored`` holds its visible form, which changes at the end only;
    ``sealed``: thoughts also go out as ``encrypted_content``."""

    def __init__(
        self, stored: Stored, generation: Generation, logprobs: LogprobFormat | None, *, sealed: bool
    ) -> None:
        self.stored = stored
        self.items = Items()
        (self._choice,) = generation.choices
        self._generation = generation
        self._logprobs = logprobs
        self._sealed = sealed
        self._ids: list[str] = []

    def item_id(self, item: Item) -> str:
        while len(self._ids) <= item.index:
            self._ids.append(new_id(_PREFIX[self.items.all[len(self._ids)].kind]))
        return self._ids[item.index]

    def entries(self, item: Item | Step) -> list[dict[str, Any]]:
        """Logprobs of the tokens of a text."""
        if self._logprobs is None:
            return []
        found: list[dict[str, Any]] = self._logprobs.chat(item.entries)["content"]
        return found

    def arguments(self, item: Item) -> str:
        """JSON of a call; of one that was cut off, what there is of it."""
        assert item.call is not None
        return item.call.arguments if self._item_status(item) == "completed" else item.text

    def part(self, item: Item, *, empty: bool = False) -> dict[str, Any]:
        """The one content part of a thought or text."""
        text = "" if empty else item.text
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        entries = [] if empty else self.entries(item)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}

    def new_item(self, item: Item) -> dict[str, Any]:
        """The item before its content."""
        return self._shape(item, "in_progress", [], "")

    def item(self, item: Item) -> dict[str, Any]:
        """The finished item."""
        status = self._item_status(item)
        if item.kind == "tool_calls":
            return self._shape(item, status, [], self.arguments(item))
        return self._shape(item, status, [self.part(item)], "")

    def _shape(self, item: Item, status: str, content: list[Any], arguments: str) -> dict[str, Any]:
        head = {"id": self.item_id(item), "status": status}
        if item.kind == "reasoning":
            thought: dict[str, Any] = {**head, "type": "reasoning", "summary": [], "content": content}
            if self._sealed:
                thought["encrypted_content"] = seal(item.text) if content else None
            return thought
        if item.kind == "content":
            return {**head, "type": "message", "role": "assistant", "content": content}
        assert item.call is not None
        call = {"call_id": item.call.id, "name": item.call.name, "arguments": arguments}
        return {**head, "type": "function_call", **call}

    def _item_status(self, item: Item) -> str:
        if item.call is not None:
            return "completed" if item.call in self._choice.shown_calls() else "incomplete"
        ended_well = _STATUS.get(self._choice.finish_reason or "") == "completed"
        return "completed" if ended_well or item is not self.items.all[-1] else "incomplete"

    def finish(self, error: ApiError | None = None) -> dict[str, Any]:
        """Close the response as the generation ended: by its own, by ``error``, or cut off."""
        status = "failed" if error is not None else _STATUS[self._choice.finish_reason or "abort"]
        final = {
            **self.stored.response,
            "status": status,
            "completed_at": int(time.time()),
            "error": {"code": error.code, "message": error.message} if error is not None else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self.item(item) for item in self.items.all],
            "usage": self._usage(),
        }
        self.stored.close(final)
        return final

    def _usage(self) -> dict[str, Any]:
        given, made = len(self._generation.job.prompts[0]), self._choice.num_tokens
        return {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": self._choice.num_cached_tokens},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": self._choice.reasoning_tokens},
            "total_tokens": given + made,
        }


class ResponsesWriter:
    """The events of one response, numbered without gaps."""

    keep_alive: bytes | None = None

    def __init__(self, builder: ResponseBuilder) -> None:
        self._builder = builder
        self._num_events = 0

    def begin(self) -> bytes:
        response = self._builder.stored.response
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def write(self, choice: Choice, delta: Delta) -> bytes:
        return b"".join(map(self._step, self._builder.items.feed(choice, delta)))

    def fault(self, error: ApiError) -> bytes:
        facts = {"code": error.code, "message": error.message, "param": error.param}
        final = self._builder.finish(error)
        return self._event("error", **facts) + self._event("response.failed", response=final)

    def end(self) -> bytes:
        closing = b"".join(map(self._step, self._builder.items.finish()))
        final = self._builder.finish()
        kind = "response.completed" if final["status"] == "completed" else "response.incomplete"
        return closing + self._event(kind, response=final)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._num_events
        self._num_events += 1
        return named_event({"type": kind, "sequence_number": number, **fields})

    def _step(self, step: Step) -> bytes:
        item = step.item
        at = {"item_id": self._builder.item_id(item), "output_index": item.index}
        if item.kind != "tool_calls":
            at["content_index"] = 0
        if step.what == "open":
            return self._open(item, at)
        return self._more(step, at) if step.what == "more" else self._close(item, at)

    def _open(self, item: Item, at: dict[str, Any]) -> bytes:
        added = self._event(
            "response.output_item.added", output_index=item.index, item=self._builder.new_item(item)
        )
        if item.kind == "tool_calls":
            return added
        part = self._builder.part(item, empty=True)
        return added + self._event("response.content_part.added", **at, part=part)

    def _more(self, step: Step, at: dict[str, Any]) -> bytes:
        if step.item.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **at, delta=step.piece)
        if step.item.kind == "tool_calls":
            return self._event("response.function_call_arguments.delta", **at, delta=step.piece)
        logprobs = self._builder.entries(step)
        return self._event("response.output_text.delta", **at, delta=step.piece, logprobs=logprobs)

    def _close(self, item: Item, at: dict[str, Any]) -> bytes:
        builder = self._builder
        if item.call is not None:
            arguments = {"name": item.call.name, "arguments": builder.arguments(item)}
            done = self._event("response.function_call_arguments.done", **at, **arguments)
        else:
            part = builder.part(item)
            if item.kind == "reasoning":
                done = self._event("response.reasoning_text.done", **at, text=part["text"])
            else:
                texts = {"text": part["text"], "logprobs": part["logprobs"]}
                done = self._event("response.output_text.done", **at, **texts)
            done += self._event("response.content_part.done", **at, part=part)
        finished = builder.item(item)
        return done + self._event("response.output_item.done", output_index=item.index, item=finished)
