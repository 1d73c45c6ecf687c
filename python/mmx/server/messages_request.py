"""Requests of the Messages API and what they mean as a chat."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from mmx.server.access import Signer
from mmx.server.chat_form import ChatForm, text_of
from mmx.server.errors import ApiError, clip, unsupported

MIN_THINKING_BUDGET = 1024
_NOT_BUILT = "this server does not offer it"
REFUSED_IN_MESSAGES = {
    "container": _NOT_BUILT,
    "context_management": _NOT_BUILT,
    "mcp_servers": _NOT_BUILT,
    "output_format": "output constrained by a grammar is not available",
}
# The client's words for fields of the chat request.
_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "function.name": "name",
    "function.strict": "strict",
}
_ERROR_MARK = "Error: "


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


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: str | list[dict[str, Any]]


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
    # Accepted for their senders' sake: nothing in one server depends on them.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None


class _Block(NamedTuple):
    path: str
    value: dict[str, Any]


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
        body["thinking"] = _thinking(request.thinking, request.max_tokens, form.warnings)
    if request.output_config is not None:
        body["reasoning_effort"] = request.output_config.effort
        body["response_format"] = request.output_config.format
    if request.system is not None:
        form.add("system", {"role": "system", "content": _plain(_blocks(request.system, "system"))})
    _add_turns(form, request.messages, signer)
    return form


def _tool(tool: ClientTool, path: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise ApiError(
            "unsupported_tool_type",
            f"{path}.type must be custom: the server runs no tools, got {clip(tool.type)!r}",
            f"{path}.type",
        )
    if tool.input_schema is None:
        raise ApiError(
            "missing_required_parameter", f"{path}.input_schema is required", f"{path}.input_schema"
        )
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    fields: dict[str, Any] = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        if choice.name is None:
            raise ApiError("missing_required_parameter", "tool_choice.name is required", "tool_choice.name")
        return {**fields, "tool_choice": {"type": "function", "function": {"name": choice.name}}}
    words = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in words:
        raise ApiError(
            "invalid_value",
            f"tool_choice.type must be auto, any, tool or none, got {clip(choice.type)!r}",
            "tool_choice.type",
        )
    return {**fields, "tool_choice": words[choice.type]}


def _thinking(thinking: ThinkingConfig, max_tokens: int | None, warnings: list[str]) -> dict[str, Any]:
    budget = thinking.budget_tokens
    if budget is not None:
        limit = max_tokens if max_tokens is not None else budget + 1
        if not MIN_THINKING_BUDGET <= budget < limit:
            raise ApiError(
                "invalid_value",
                f"thinking.budget_tokens must be at least {MIN_THINKING_BUDGET} and less than max_tokens, "
                f"got {clip(budget)}",
                "thinking.budget_tokens",
            )
        warnings.append("thinking.budget_tokens is not enforced; only max_tokens limits the answer")
    if thinking.display not in (None, "summarized"):
        raise unsupported("thinking.display", "thinking is returned in full")
    return {"type": thinking.type}


# ---- conversation ------------------------------------------------------------------------------------


def _add_turns(form: ChatForm, turns: list[Turn], signer: Signer) -> None:
    """Turns of the same role in a row become one."""
    merged: list[tuple[str, str, list[_Block]]] = []
    for i, turn in enumerate(turns):
        path, role = f"messages[{i}]", turn.role
        if role not in ("user", "assistant", "system"):
            raise ApiError(
                "invalid_value", f"{path}.role must be user or assistant, got {clip(role)!r}", f"{path}.role"
            )
        if role == "system" and any(earlier[0] != "system" for earlier in merged):
            role = "user"
            form.warnings.append(f"{path}: a system message inside the conversation is read as the user's")
        blocks = _blocks(turn.content, f"{path}.content")
        if merged and merged[-1][0] == role:
            merged[-1][2].extend(blocks)
        else:
            merged.append((role, path, blocks))
    for role, path, blocks in merged:
        if role == "assistant":
            _add_assistant(form, path, blocks, signer)
        elif role == "user":
            _add_user(form, path, blocks)
        else:
            form.add(path, {"role": "system", "content": _plain(blocks)})
    if merged and merged[-1][0] == "assistant":
        last = form.messages[-1]
        if not last["content"] or last.get("tool_calls"):
            raise ApiError(
                "invalid_value",
                "messages must end with the user, or with text of the assistant to go on from",
                "messages",
            )
        form.body["continue_final_message"] = True


def _blocks(content: str | list[dict[str, Any]], path: str) -> list[_Block]:
    if isinstance(content, str):
        return [_Block(path, {"type": "text", "text": content})]
    return [_Block(f"{path}[{j}]", block) for j, block in enumerate(content)]


def _plain(blocks: list[_Block]) -> str:
    texts = []
    for block in blocks:
        part = _part(block)
        if part["type"] != "text":
            raise ApiError("media_not_supported", f"{block.path} must be a text block", block.path)
        texts.append(part["text"])
    return "".join(texts)


def _part(block: _Block) -> dict[str, Any]:
    """The chat part of a user's block."""
    path, value = block
    match value.get("type"):
        case "text":
            return {"type": "text", "text": text_of(value, "text", path)}
        case "image":
            return {"type": "image_url", "image_url": value.get("source")}
        case "document":
            source = value.get("source")
            if not isinstance(source, dict) or source.get("type") != "text":
                raise ApiError("media_not_supported", f"{path}.source must have type text", f"{path}.source")
            return {"type": "text", "text": text_of(source, "data", f"{path}.source")}
    raise _unknown_block(block, "text, image, document or tool_result")


def _unknown_block(block: _Block, expected: str) -> ApiError:
    kind = clip(block.value.get("type"))
    return ApiError(
        "invalid_value", f"{block.path}.type must be {expected}, got {kind!r}", f"{block.path}.type"
    )


def _add_user(form: ChatForm, path: str, blocks: list[_Block]) -> None:
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if block.value.get("type") != "tool_result":
            parts.append(_part(block))
        elif parts:
            raise ApiError(
                "invalid_value", f"{block.path}: tool_result blocks must come before all others", block.path
            )
        else:
            _add_result(form, block)
    if parts or not blocks:
        form.add(path, {"role": "user", "content": parts})


def _add_result(form: ChatForm, block: _Block) -> None:
    path, value = block
    given = value.get("content")
    if given is not None and not isinstance(given, str | list):
        raise ApiError("invalid_type", f"{path}.content must be a string or a list", f"{path}.content")
    if isinstance(given, list) and not all(isinstance(inner, dict) for inner in given):
        raise ApiError("invalid_type", f"{path}.content must hold objects", f"{path}.content")
    parts = [_part(inner) for inner in _blocks(given or "", f"{path}.content")]
    if value.get("is_error") is True:
        # Templates know no failed results, so the model is told in words.
        parts.insert(0, {"type": "text", "text": _ERROR_MARK})
    call_id = text_of(value, "tool_use_id", path)
    form.add(path, {"role": "tool", "tool_call_id": call_id, "content": parts})


def _add_assistant(form: ChatForm, path: str, blocks: list[_Block], signer: Signer) -> None:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        at, value = block
        match value.get("type"):
            case "text":
                texts.append(text_of(value, "text", at))
            case "thinking":
                thoughts.append(text_of(value, "thinking", at))
                signature = text_of(value, "signature", at, required=False)
                if signature and not signer.wrote(thoughts[-1], signature):
                    form.warnings.append(f"{at}.signature is not of this server")
            case "redacted_thinking":
                continue
            case "tool_use":
                if not isinstance(value.get("input"), dict):
                    raise ApiError("invalid_type", f"{at}.input must be an object", f"{at}.input")
                function = {"name": text_of(value, "name", at), "arguments": value["input"]}
                calls.append({"id": text_of(value, "id", at), "type": "function", "function": function})
            case _:
                raise _unknown_block(block, "text, thinking, redacted_thinking or tool_use")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    form.add(path, message)
