"""Checks chat messages and brings them into the one form that templates are written for.

``ChatTemplateError`` names the field (``messages[2].content``) and what was expected there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Family = Literal["m2", "m3"]
Message = dict[str, Any]

MAX_NESTING = 100
_ROLES = ("root", "system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_MEDIA_PARTS = ("image", "image_url", "input_image", "video", "video_url", "input_video")


class ChatTemplateError(ValueError):
    """A conversation can not be rendered. ``param``: path of the field at fault; ``code``: machine-readable
    reason, None for a plain malformed field."""

    def __init__(self, param: str, message: str, code: str | None = None) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.code = code


def normalize_messages(
    messages: Sequence[Mapping[str, Any]], *, family: Family | None, allow_media: bool, warnings: list[str]
) -> list[Message]:
    """Copies of ``messages`` ready for a template.

    - lists of text parts become one string (tool results of M2 stay lists: its template frames each part);
    - ``developer`` counts as ``system``, ``function`` as ``tool``; the leading system messages become one,
      joined by an empty line; later ones are refused, because the templates would drop them silently;
    - ``arguments`` of calls become objects, ``reasoning`` and ``reasoning_details`` ``reasoning_content``;
    - tool results are checked against the calls they answer and put into the order of the calls.

    For an unknown template (``family`` None) roles and system messages stay as they are.
    ``warnings`` receives one sentence for each oddity that is accepted.
    """
    if not messages:
        raise ChatTemplateError("messages", "must hold at least one message")
    normal = [
        _normalize_message(message, f"messages[{i}]", family, allow_media)
        for i, message in enumerate(messages)
    ]
    _order_tool_results(normal, family, warnings)
    return normal if family is None else _merge_system(normal)


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tool definitions as ``{"type": "function", "function": {...}}``, keys in the caller's order."""
    normal = []
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
            raise ChatTemplateError(f"tools[{i}].function", "must be an object")
        if not isinstance(tool["function"].get("name"), str):
            raise ChatTemplateError(f"tools[{i}].function.name", "must be a string")
        normal.append(dict(tool))
    return normal or None


def _normalize_message(
    message: Mapping[str, Any], path: str, family: Family | None, allow_media: bool
) -> Message:
    if not isinstance(message, Mapping):
        raise ChatTemplateError(path, f"must be an object, got {type(message).__name__}")
    role, roles = message.get("role"), _ROLES[1:] if family == "m2" else _ROLES  # M2 has no root
    if role not in roles:
        raise ChatTemplateError(f"{path}.role", f"must be one of {', '.join(roles)}, got {role!r}")
    if role == "function":
        role = "tool"
    elif role == "developer" and family is not None:
        role = "system"
    normal = {key: value for key, value in message.items() if value is not None}
    normal["role"] = role
    keep_parts = role == "tool" and family == "m2"
    media_here = allow_media and role == "user"
    normal["content"] = _content(message.get("content"), f"{path}.content", family, media_here, keep_parts)
    if message.get("content") is None and role != "assistant":
        raise ChatTemplateError(f"{path}.content", "must be a string or a list of content parts")
    if role == "assistant":
        _normalize_assistant(normal, path)
    elif message.get("tool_calls"):
        raise ChatTemplateError(f"{path}.tool_calls", f"is allowed in assistant messages only, not in {role}")
    return normal


def _content(content: Any, path: str, family: Family | None, allow_media: bool, keep_parts: bool) -> Any:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ChatTemplateError(
            path, f"must be a string or a list of content parts, got {type(content).__name__}"
        )
    parts: list[Any] = []
    has_media = False
    for i, part in enumerate(content):
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _MEDIA_PARTS:
            if not allow_media or family == "m2":
                here = "images and videos are not accepted here"
                text = f"{kind} part refused: {'the model reads text only' if family == 'm2' else here}"
                raise ChatTemplateError(f"{path}[{i}]", text, "media_not_supported")
            has_media = True
            parts.append(dict(part))
        elif kind in _TEXT_PARTS:
            name = "refusal" if kind == "refusal" else "text"
            if not isinstance(part.get(name), str):
                raise ChatTemplateError(f"{path}[{i}].{name}", "must be a string")
            parts.append({**part, "type": "text", "text": part[name]})
        else:
            expected = ", ".join((*_TEXT_PARTS, *_MEDIA_PARTS))
            raise ChatTemplateError(f"{path}[{i}].type", f"must be one of {expected}, got {kind!r}")
    if has_media or keep_parts:
        return parts
    return "".join(part["text"] for part in parts)


def _normalize_assistant(message: Message, path: str) -> None:
    reasoning = message.pop("reasoning", None)
    content = message.pop("reasoning_content", None)
    details = message.pop("reasoning_details", None)
    for name, value in (("reasoning", reasoning), ("reasoning_content", content)):
        if value is not None and not isinstance(value, str):
            raise ChatTemplateError(f"{path}.{name}", f"must be a string, got {type(value).__name__}")
    if reasoning is not None and content is not None and reasoning != content:
        raise ChatTemplateError(
            f"{path}.reasoning", "differs from reasoning_content; send one of them, or both equal"
        )
    if reasoning is None:
        reasoning = content
    if reasoning is None and details is not None:
        reasoning = _reasoning_of_details(details, f"{path}.reasoning_details")
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    calls, old_form = message.pop("tool_calls", None), message.pop("function_call", None)
    if old_form is not None and not calls:
        calls = [{"type": "function", "function": old_form}]
    if not message["content"] and isinstance(message.get("refusal"), str):
        message["content"] = message["refusal"]
    if calls is not None and (isinstance(calls, str) or not isinstance(calls, Sequence)):
        raise ChatTemplateError(f"{path}.tool_calls", "must be a list")
    if calls:
        message["tool_calls"] = [_tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _reasoning_of_details(details: Any, path: str) -> str:
    if not isinstance(details, list):
        raise ChatTemplateError(path, "must be a list")
    texts = []
    for i, detail in enumerate(details):
        text = detail.get("text") if isinstance(detail, Mapping) else None
        if not isinstance(text, str):
            raise ChatTemplateError(f"{path}[{i}].text", "must be a string")
        texts.append(text)
    return "".join(texts)


def _tool_call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ChatTemplateError(f"{path}.function", "must be an object with name and arguments")
    if not isinstance(function.get("name"), str):
        raise ChatTemplateError(f"{path}.function.name", "must be a string")
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        # Why: several clients write "" for a call without arguments; it can mean nothing else.
        arguments = {}
    elif isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (ValueError, RecursionError) as error:
            raise ChatTemplateError(
                f"{path}.function.arguments", f"must be JSON text of an object: {error}"
            ) from None
    if _deeper(arguments, MAX_NESTING):
        raise ChatTemplateError(f"{path}.function.arguments", f"is nested deeper than {MAX_NESTING} levels")
    if not isinstance(arguments, Mapping):
        raise ChatTemplateError(f"{path}.function.arguments", "must be an object or JSON text of an object")
    return {**call, "function": {**function, "arguments": dict(arguments)}}


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in inner)


def _order_tool_results(messages: list[Message], family: Family | None, warnings: list[str]) -> None:
    """Puts each run of tool messages into the order of the calls it answers."""
    i = 0
    while i < len(messages):
        start = stop = i if messages[i]["role"] == "tool" else i + 1
        while stop < len(messages) and messages[stop]["role"] == "tool":
            stop += 1
        calls = messages[i].get("tool_calls") or []
        if stop > start and (start == i or not calls):
            raise ChatTemplateError(
                f"messages[{start}]", "a tool message must follow the assistant message that called"
            )
        if stop > start or (calls and stop < len(messages)):
            answers = _match_results(calls, messages[start:stop], start)
            missing = [j for j in range(len(calls)) if j not in answers]
            if missing:
                path = f"messages[{i}].tool_calls[{missing[0]}]"
                if family == "m3":
                    raise ChatTemplateError(path, "has no tool message that answers it")
                warnings.append(f"{path} has no tool message that answers it")
            messages[start:stop] = [answers[j] for j in sorted(answers)]
        i = stop


def _match_results(calls: list[dict[str, Any]], results: list[Message], start: int) -> dict[int, Message]:
    """Position of the call -> the message that answers it."""
    answers: dict[int, Message] = {}
    positions = {call["id"]: j for j, call in enumerate(calls) if call.get("id") is not None}
    for k, result in enumerate(results):
        path = f"messages[{start + k}]"
        call_id = result.get("tool_call_id")
        if call_id is None:
            # Old clients send no ids; their results come in the order of the calls.
            position = next((j for j in range(len(calls)) if j not in answers), None)
            if position is None:
                raise ChatTemplateError(path, "answers no call: the assistant message made fewer calls")
        elif call_id not in positions:
            raise ChatTemplateError(
                f"{path}.tool_call_id", f"{call_id!r} is no call of the preceding assistant message"
            )
        else:
            position = positions[call_id]
        if position in answers:
            raise ChatTemplateError(f"{path}.tool_call_id", f"{call_id!r} was answered before")
        answers[position] = result
    return answers


def _merge_system(messages: list[Message]) -> list[Message]:
    head = 1 if messages[0]["role"] == "root" else 0
    stop = head
    while stop < len(messages) and messages[stop]["role"] == "system":
        stop += 1
    for i in range(stop, len(messages)):
        if messages[i]["role"] in ("root", "system"):
            where = "as the first message" if messages[i]["role"] == "root" else "before the conversation"
            raise ChatTemplateError(f"messages[{i}].role", f"{messages[i]['role']} is allowed only {where}")
    if stop - head < 2:
        return messages
    merged: Message = {}
    for message in messages[head:stop]:
        merged.update(message)
    merged["content"] = "\n\n".join(
        message["content"] for message in messages[head:stop] if message["content"]
    )
    return [*messages[:head], merged, *messages[stop:]]
