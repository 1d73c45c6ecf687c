"""Turns of the Messages API as chat messages."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from mmx.server.access import Signer
from mmx.server.chat_form import ChatForm, text_of
from mmx.server.errors import ApiError, clip, invalid

_ERROR_MARK = "Error: "


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: str | list[dict[str, Any]]


class _Block(NamedTuple):
    path: str
    value: dict[str, Any]


def add_turns(form: ChatForm, turns: list[Turn], signer: Signer) -> None:
    """Turns of the same role in a row become one."""
    merged: list[tuple[str, str, list[_Block]]] = []
    for i, turn in enumerate(turns):
        path, role = f"messages[{i}]", turn.role
        if role not in ("user", "assistant", "system"):
            raise invalid(f"{path}.role", f"must be user or assistant, got {clip(role)!r}")
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
            form.add(path, {"role": "system", "content": _joined(blocks)})
    if merged and merged[-1][0] == "assistant":
        last = form.messages[-1]
        if not last["content"] or last.get("tool_calls"):
            raise invalid("messages", "must end with the user, or with text of the assistant to go on from")
        form.body["continue_final_message"] = True


def _blocks(content: str | list[dict[str, Any]], path: str) -> list[_Block]:
    if isinstance(content, str):
        return [_Block(path, {"type": "text", "text": content})]
    return [_Block(f"{path}[{j}]", block) for j, block in enumerate(content)]


def plain(content: str | list[dict[str, Any]], path: str) -> str:
    """The text of content that is nothing but text."""
    return _joined(_blocks(content, path))


def _joined(blocks: list[_Block]) -> str:
    texts = []
    for block in blocks:
        part = _part(block)
        if part["type"] != "text":
            raise invalid(block.path, "must be a text block", "media_not_supported")
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
                raise invalid(f"{path}.source", "must have type text", "media_not_supported")
            return {"type": "text", "text": text_of(source, "data", f"{path}.source")}
    raise _unknown_block(block, "text, image, document or tool_result")


def _unknown_block(block: _Block, expected: str) -> ApiError:
    kind = clip(block.value.get("type"))
    return invalid(f"{block.path}.type", f"must be {expected}, got {kind!r}")


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
        raise invalid(f"{path}.content", "must be a string or a list", "invalid_type")
    if isinstance(given, list) and not all(isinstance(inner, dict) for inner in given):
        raise invalid(f"{path}.content", "must hold objects", "invalid_type")
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
                    raise invalid(f"{at}.input", "must be an object", "invalid_type")
                calls.append((at, text_of(value, "id", at), text_of(value, "name", at), value["input"]))
            case _:
                raise _unknown_block(block, "text, thinking, redacted_thinking or tool_use")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    form.add(path, message)
    for call in calls:
        form.add_call(*call)
