"""Requests of other APIs in the form of a chat request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mmx.server.chat_job import ChatJob, chat_job
from mmx.server.decode import decode_request
from mmx.server.errors import ApiError, invalid, missing
from mmx.server.prepare import Incoming, accept
from mmx.server.schemas import ChatRequest
from mmx.server.state import STATE, ServerState

_INDEX = re.compile(r"\bmessages\[(\d+)\](?:\.tool_calls\[(\d+)\](?:\.function)?)?")


@dataclass
class ChatForm:
    """``body`` is the chat request, ``origins`` the path in the client's request of each of its messages,
    ``call_origins`` that of each call by the numbers of message and call, ``names`` the client's word for
    what chat calls otherwise."""

    body: dict[str, Any]
    names: dict[str, str]
    origins: list[str] = field(default_factory=list)
    call_origins: dict[tuple[int, int], str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.body["messages"] = []
        self._name = re.compile(rf"\b({'|'.join(map(re.escape, self.names))})\b")

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    def add(self, origin: str, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.origins.append(origin)

    def add_call(self, origin: str, call_id: str, name: str, arguments: str | dict[str, Any]) -> None:
        """Let the last message call a function."""
        calls = self.messages[-1].setdefault("tool_calls", [])
        self.call_origins[len(self.messages) - 1, len(calls)] = origin
        function = {"name": name, "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})

    def rename(self, text: str) -> str:
        """``text`` with the client's names."""
        return self._name.sub(lambda found: self.names[found[0]], _INDEX.sub(self._origin, text))

    def _origin(self, found: re.Match[str]) -> str:
        # The text may quote a client that writes such words itself.
        index = int(found[1])
        if index >= len(self.origins):
            return found[0]
        return self.call_origins.get((index, int(found[2] or -1)), self.origins[index])

    @contextmanager
    def client_words(self) -> Iterator[None]:
        """Errors raised inside speak of the client's fields."""
        try:
            yield
        except ApiError as error:
            raise error.renamed(self.rename) from None

    def accept(self, state: ServerState, unknown: list[str]) -> tuple[Incoming, ChatRequest]:
        """Decode the chat request; ``unknown`` are the fields nobody knows of the request it comes from."""
        chat, _ = decode_request(self.body, ChatRequest, {})
        incoming = accept(state, self.body, chat, unknown)
        incoming.warnings += self.warnings
        return incoming, chat

    async def job(self, request: web.Request, unknown: list[str]) -> tuple[Incoming, ChatRequest, ChatJob]:
        """What chat makes of the request; errors and warnings in the client's words."""
        with self.client_words():
            incoming, chat = self.accept(request.app[STATE], unknown)
            in_client_words = len(incoming.warnings)
            work = await chat_job(request, incoming, chat)
        incoming.warnings[in_client_words:] = map(self.rename, incoming.warnings[in_client_words:])
        return incoming, chat, work


def function_tool(
    name: str, description: str | None, parameters: dict[str, Any] | None, strict: bool | None
) -> dict[str, Any]:
    """A tool as chat writes it, without the fields that are null."""
    function = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def text_of(part: dict[str, Any], name: str, path: str, *, required: bool = True) -> str:
    """The string ``part[name]``; 400 if it is something else."""
    value = part.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        if not required:
            return ""
        raise missing(f"{path}.{name}")
    raise invalid(f"{path}.{name}", "must be a string", "invalid_type")
