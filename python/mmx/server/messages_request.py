"""Requests of the Messages API and what they mean as a chat."""

from __future__ import annotations

from typing import Any

import msgspec

from mmx.server.access import Signer
from mmx.server.chat_form import ChatForm, function_tool
from mmx.server.errors import clip, invalid, missing, unsupported
from mmx.server.messages_turns import Turn, add_turns, plain
from mmx.server.schemas import NOT_BUILT

MIN_THINKING_BUDGET = 1024
REFUSED_IN_MESSAGES = {
    "compaction": NOT_BUILT,
    "container": NOT_BUILT,
    "context_management": NOT_BUILT,
    "mcp_servers": NOT_BUILT,
}
# The client's words for fields of the chat request.
_NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format.json_schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "tool message": "tool_result block",
    "tool_call_id": "tool_use_id",
    "function.name": "name",
    "function.strict": "strict",
    "function.parameters": "input_schema",
}


class OutputConfig(msgspec.Struct, frozen=True):
    effort: str | None = None
    format: dict[str, Any] | None = None


class ThinkingConfig(msgspec.Struct, frozen=True):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class ClientTool(msgspec.Struct, frozen=True):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``max_tokens`` is required where something is generated, not for counting."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    # Accepted for their senders' sake: nothing in one server depends on them.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None


def to_chat(request: MessagesRequest, signer: Signer) -> ChatForm:
    """The chat request that means the same; ApiError names what has no meaning here."""
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stream": request.stream,
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())] or None,
    }
    form = ChatForm(body, _NAMES)
    if request.tool_choice is not None:
        body.update(_tool_choice(request.tool_choice))
    if request.thinking is not None:
        body["thinking"] = _thinking(request.thinking, request.max_tokens)
    if request.output_config is not None:
        body["reasoning_effort"] = request.output_config.effort
        body["response_format"] = _format(request.output_config.format)
    if request.output_format is not None:
        body["response_format"] = _format(request.output_format)
    if request.system is not None:
        form.add("system", {"role": "system", "content": plain(request.system, "system")})
    add_turns(form, request.messages, signer)
    return form


def _tool(tool: ClientTool, path: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise invalid(
            f"{path}.type",
            f"must be custom: the server runs no tools, got {clip(tool.type)!r}",
            "unsupported_tool_type",
        )
    if tool.input_schema is None:
        raise missing(f"{path}.input_schema")
    return function_tool(tool.name, tool.description, tool.input_schema, tool.strict)


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    fields: dict[str, Any] = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        if choice.name is None:
            raise missing("tool_choice.name")
        return {**fields, "tool_choice": {"type": "function", "function": {"name": choice.name}}}
    words = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in words:
        raise invalid("tool_choice.type", f"must be auto, any, tool or none, got {clip(choice.type)!r}")
    return {**fields, "tool_choice": words[choice.type]}


def _thinking(thinking: ThinkingConfig, max_tokens: int | None) -> dict[str, Any]:
    budget = thinking.budget_tokens
    if budget is not None:
        limit = max_tokens if max_tokens is not None else budget + 1
        if not MIN_THINKING_BUDGET <= budget < limit:
            limits = f"at least {MIN_THINKING_BUDGET} and less than max_tokens"
            raise invalid("thinking.budget_tokens", f"must be {limits}, got {clip(budget)}")
    if thinking.display not in (None, "summarized"):
        raise unsupported("thinking.display", "thinking is returned in full")
    return {"type": thinking.type, "budget_tokens": budget}


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {"schema": given.get("schema")}}
