"""Input items of the Responses API as chat messages."""

from __future__ import annotations

import base64
import json
from typing import Any

from mmx.server.chat_form import ChatForm, text_of
from mmx.server.errors import ApiError, clip, invalid
from mmx.server.responses_store import ResponseStore

_SEAL = "mmx."
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def seal(text: str) -> str:
    """``encrypted_content`` of a thought: opaque to clients, but no secret, as its text is in the answer."""
    return _SEAL + base64.b64encode(text.encode()).decode()


def _unseal(sealed: str) -> str | None:
    if not sealed.startswith(_SEAL):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(_SEAL), validate=True).decode()
    except ValueError:
        return None


def add_items(form: ChatForm, items: list[dict[str, Any]], path: str, store: ResponseStore | None) -> None:
    """Add what the items say to ``form``. Thoughts, texts and calls of the assistant in a row become one
    message. ``store`` resolves references."""
    in_turn = False
    for i, item in enumerate(items):
        at = f"{path}[{i}]"
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind == "item_reference":
            if store is None:
                raise invalid(at, "refers to an unknown item", "not_found")
            item = store.item(text_of(item, "id", at), at)
            kind = item["type"]
        if kind in ("reasoning", "function_call") or (kind == "message" and item.get("role") == "assistant"):
            if not in_turn:
                form.add(at, {"role": "assistant", "content": ""})
            in_turn = True
            _extend(form, kind, item, at)
            continue
        in_turn = False
        if kind == "message":
            _add_message(form, item, at)
        elif kind == "function_call_output":
            content = _parts(item.get("output"), f"{at}.output")
            form.add(at, {"role": "tool", "tool_call_id": text_of(item, "call_id", at), "content": content})
        else:
            form.warnings.append(f"{at}: an item of type {clip(kind)!r} is read as the user's text")
            form.add(at, {"role": "user", "content": json.dumps(item, ensure_ascii=False)})


def _extend(form: ChatForm, kind: str, item: dict[str, Any], at: str) -> None:
    turn = form.messages[-1]
    if kind == "message":
        turn["content"] += _text(item.get("content"), f"{at}.content")
    elif kind == "reasoning":
        thought = _thought(item, at, form.warnings)
        if thought:
            earlier = turn.get("reasoning_content")
            turn["reasoning_content"] = thought if earlier is None else f"{earlier}\n{thought}"
    else:
        form.add_call(at, *(text_of(item, name, at) for name in ("call_id", "name", "arguments")))


def _thought(item: dict[str, Any], at: str, warnings: list[str]) -> str:
    """The text of a thought, from its content, the sealed copy or the summary."""
    if item.get("content"):
        return _text(item["content"], f"{at}.content")
    sealed = text_of(item, "encrypted_content", at, required=False)
    if sealed:
        text = _unseal(sealed)
        if text is not None:
            return text
        warnings.append(f"{at}.encrypted_content is not of this server")
    return _text(item.get("summary") or "", f"{at}.summary")


def _add_message(form: ChatForm, item: dict[str, Any], at: str) -> None:
    role = text_of(item, "role", at)
    if role not in ("user", "system", "developer"):
        raise invalid(f"{at}.role", f"must be user, assistant, system or developer, got {clip(role)!r}")
    content = _parts(item.get("content"), f"{at}.content")
    if role != "user" and any(message["role"] != "system" for message in form.messages):
        form.warnings.append(f"{at}: a {role} message inside the conversation is read as the user's")
        role = "user"
    form.add(at, {"role": "user" if role == "user" else "system", "content": content})


def _text(content: Any, path: str) -> str:
    parts = _parts(content, path)
    if isinstance(parts, str):
        return parts
    for j, part in enumerate(parts):
        if part["type"] != "text":
            raise invalid(f"{path}[{j}]", "must be text")
    return "".join(part["text"] for part in parts)


def _parts(content: Any, path: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise invalid(path, "must be a string or a list of parts", "invalid_type")
    return [_part(part, f"{path}[{j}]") for j, part in enumerate(content)]


def _part(part: dict[str, Any], path: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": text_of(part, "text", path)}
    if kind == "refusal":
        return {"type": "text", "text": text_of(part, "refusal", path)}
    if kind == "input_image":
        return {"type": "image_url", "image_url": part.get("image_url")}
    if kind in ("input_file", "input_audio"):
        raise ApiError("media_not_supported", f"{path}: {kind} parts are not accepted here", path)
    raise invalid(
        f"{path}.type", f"must be input_text, input_image, output_text or refusal, got {clip(kind)!r}"
    )
