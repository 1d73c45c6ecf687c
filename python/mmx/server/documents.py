"""What shape of text a request asks for, out of the many ways in which clients say it."""

from __future__ import annotations

from typing import Any

from mmx.grammar import Document
from mmx.server.decode import decode_json
from mmx.server.errors import ApiError, clip, invalid, missing, unsupported
from mmx.server.schemas import Generate

# Kinds with the fields of response_format that hold their value.
_FORMATS = {
    "json_schema": ("json_schema", "schema"),
    "regex": ("regex", "pattern"),
    "ebnf": ("ebnf", "grammar"),
    "grammar": ("grammar",),
}
_STRUCTURED = ("json", "regex", "choice", "grammar", "json_object")
_KINDS = {"json": "json_schema", "ebnf": "grammar"}


def requested_document(request: Generate) -> Document | None:
    """The one shape that the request asks for; 400 if it names several or one that does not exist."""
    found = [_from_format(request.response_format or {}), *_from_structured(request.structured_outputs or {})]
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf"):
        value = getattr(request, name)
        if value is not None:
            found.append(_document(name.removeprefix("guided_"), value, name))
    documents = [document for document in found if document is not None]
    if len(documents) > 1:
        text = f"only one of {documents[0].path} and {documents[1].path} can shape the answer"
        raise ApiError("unsupported_combination", text, documents[1].path)
    return documents[0] if documents else None


def _from_format(given: dict[str, Any]) -> Document | None:
    kind = given.get("type", "text")
    if not isinstance(kind, str):
        raise invalid("response_format.type", "must be a string", "invalid_type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Document("json_object", None, "response_format")
    if kind == "structural_tag":
        raise unsupported("response_format", "structural tags; use tools or a grammar")
    if kind not in _FORMATS:
        names = ", ".join(("text", "json_object", *_FORMATS))
        raise invalid("response_format.type", f"must be one of {names}, got {clip(kind)!r}")
    name = next((name for name in _FORMATS[kind] if given.get(name) is not None), None)
    if name is None:
        path = f"response_format.{_FORMATS[kind][0]}"
        raise missing(path)
    value, path = given[name], f"response_format.{name}"
    if name == "json_schema":
        if not isinstance(value, dict):
            raise invalid(path, "must be an object", "invalid_type")
        value, path = value.get("schema"), f"{path}.schema"
        if value is None:
            raise missing(path)
    return _document(kind, value, path)


def _from_structured(given: dict[str, Any]) -> list[Document | None]:
    documents = []
    for name, value in given.items():
        path = f"structured_outputs.{name}"
        if value is None or value is False:
            continue
        if name not in _STRUCTURED:
            raise unsupported(path, f"only {', '.join(_STRUCTURED)}")
        documents.append(_document(name, value, path))
    return documents


def _document(kind: str, value: Any, path: str) -> Document | None:
    kind = _KINDS.get(kind, kind)
    match kind:
        case "json_object":
            return Document(kind, None, path)
        case "json_schema":
            if isinstance(value, str):
                value = decode_json(value.encode(), path, "invalid_schema", path)
            if not isinstance(value, dict | bool):
                raise invalid(path, "must be a JSON schema", "invalid_type")
        case "choice":
            is_list = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
            if not is_list or not value:
                raise invalid(path, "must be a list of non-empty strings", "invalid_type")
        case _:
            if not isinstance(value, str) or not value:
                raise invalid(path, "must be a non-empty string", "invalid_type")
    return Document(kind, value, path)


def check_combination(request: Generate, enforced: bool) -> None:
    """400 for what can not hold beside an enforced shape."""
    if not enforced:
        return
    if request.ignore_eos:
        raise invalid("ignore_eos", "excludes a constrained answer", "unsupported_combination")
    if request.min_tokens:
        raise invalid("min_tokens", "excludes a constrained answer", "unsupported_combination")
