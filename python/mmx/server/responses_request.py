"""Requests of the Responses API and what they mean as a chat."""

from __future__ import annotations

from typing import Any

import msgspec

from mmx.server.chat_form import ChatForm, function_tool
from mmx.server.errors import clip, invalid, missing, unsupported
from mmx.server.responses_items import add_items
from mmx.server.responses_store import ResponseStore, Stored
from mmx.server.schemas import NOT_BUILT, ReasoningOptions, Sampling, Thinking

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
REFUSED_IN_RESPONSES = {
    "conversation": "use previous_response_id",
    "max_tool_calls": "the server runs no tools",
    "prompt": NOT_BUILT,
    "context_management": NOT_BUILT,
}
# The client's words for fields of the chat request.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool message": "function_call_output",
    "tool_call_id": "call_id",
    "function.name": "name",
    "function.strict": "strict",
    "function.parameters": "parameters",
}
# Fields that chat has under the same name.
_SAME = (*Sampling.__struct_fields__, "parallel_tool_calls")


class TextOptions(msgspec.Struct, frozen=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class FlatTool(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesRequest(Sampling, frozen=True, kw_only=True):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[FlatTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    thinking: Thinking | bool | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: str | None = None


def to_chat(request: ResponsesRequest, body: dict[str, Any], store: ResponseStore) -> ChatForm:
    """The chat request that means the same, after the conversation it continues; ApiError names what has
    no meaning here. ``body`` is the request as it came."""
    _check(request, store)
    chat: dict[str, Any] = {name: body.get(name) for name in _SAME}
    chat["max_tokens"] = request.max_output_tokens
    chat["stream_options"] = {} if request.stream_options is not None else None
    chat["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())] or None
    chat["tool_choice"] = _tool_choice(request.tool_choice)
    chat["reasoning"], chat["thinking"] = body.get("reasoning"), body.get("thinking")
    if request.text is not None and request.text.format is not None:
        chat["response_format"] = _format(request.text.format)
    if LOGPROBS in (request.include or ()):
        chat["logprobs"], chat["top_logprobs"] = True, request.top_logprobs
    form = ChatForm(chat, _NAMES)
    if request.instructions is not None:
        form.add("instructions", {"role": "system", "content": request.instructions})
    if request.previous_response_id is not None:
        _add_previous(form, store.get(request.previous_response_id, "previous_response_id"))
    items = request.input
    if isinstance(items, str):
        items = [{"type": "message", "role": "user", "content": items}]
    add_items(form, items, "input", store)
    return form


def _check(request: ResponsesRequest, store: ResponseStore) -> None:
    include = request.include or []
    for name in include:
        if name not in (LOGPROBS, ENCRYPTED):
            raise unsupported("include", f"only {LOGPROBS} and {ENCRYPTED}")
    if request.top_logprobs and LOGPROBS not in include:
        raise invalid("top_logprobs", f"needs {LOGPROBS} in include")
    if request.truncation not in (None, "disabled"):
        raise unsupported("truncation", "only disabled; a conversation that is too long is refused")
    if request.store and not store.enabled:
        raise unsupported("store", "this server keeps no responses")
    if request.background:
        if request.store is False or not store.enabled:
            raise invalid("background", "needs store to be true", "unsupported_combination")
        if request.stream:
            raise invalid("background", "excludes stream", "unsupported_combination")


def _tool(tool: FlatTool, path: str) -> dict[str, Any]:
    if tool.type != "function":
        raise invalid(
            f"{path}.type",
            f"must be function: the server runs no tools, got {clip(tool.type)!r}",
            "unsupported_tool_type",
        )
    if tool.name is None:
        raise missing(f"{path}.name")
    return function_tool(tool.name, tool.description, tool.parameters, tool.strict)


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and "name" in choice:
        return {"type": choice.get("type"), "function": {"name": choice["name"]}}
    return choice


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {k: v for k, v in given.items() if k != "type"}}


def _add_previous(form: ChatForm, previous: Stored) -> None:
    if previous.is_open:
        raise invalid("previous_response_id", "is a response in progress")
    for message in previous.messages:
        form.add("previous_response_id", message)
    finished = [
        item
        for item in previous.response["output"]
        if item["type"] != "function_call" or item["status"] == "completed"
    ]
    add_items(form, finished, "previous_response_id", None)
