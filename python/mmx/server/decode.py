"""From the bytes of a body to a typed request, or to the error that names the field at fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from mmx.server.errors import ApiError, clip, invalid, missing, unsupported
from mmx.server.schemas import HARMLESS

T = TypeVar("T", bound=msgspec.Struct)

MAX_NESTING = 100
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``; 400 ``invalid_json`` for anything else."""
    value = decode_json(body, "the request body", "invalid_json")
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "the request body must be a JSON object")
    return value


def decode_json(text: bytes, name: str, code: str, param: str | None = None) -> Any:
    """The value of a JSON text from a client; ApiError ``code`` says what is wrong with ``name``."""
    try:
        value = msgspec.json.decode(text)
        # Only a text with many brackets can be deep; the others skip the walk.
        if text.count(b"[") + text.count(b"{") > MAX_NESTING:
            _check_depth(value)
        return value
    except msgspec.ValidationError:
        problem = "holds a number that is out of range"
    except msgspec.DecodeError as exc:
        fault = clip(str(exc).removeprefix("JSON is malformed: "))
        problem = f"is not valid JSON: {fault}" if text.strip() else "is empty"
    except UnicodeDecodeError:
        problem = "is not valid UTF-8"
    except RecursionError:
        problem = f"is nested deeper than {MAX_NESTING} levels"
    raise ApiError(code, f"{name} {problem}", param)


def _check_depth(root: Any) -> None:
    """RecursionError if ``root`` holds more levels than are allowed."""
    level = [root]
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for item in level:
            values = item.values() if isinstance(item, dict) else item
            below += [value for value in values if isinstance(value, dict | list)]
        if not below:
            return
        level = below
    raise RecursionError


def _integer_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Fields that take integers and no other number."""
    hints = get_type_hints(kind)
    return frozenset(n for n, h in hints.items() if int in get_args(h) and float not in get_args(h))


_INTEGERS: dict[type, frozenset[str]] = {}
_NAMES: dict[type, frozenset[str]] = {}


def decode_request(body: dict[str, Any], kind: type[T], refused: Mapping[str, str]) -> tuple[T, list[str]]:
    """(typed request, names of unknown fields). Raises ApiError for wrong types, missing fields and fields
    in ``refused`` (name -> reason)."""
    if kind not in _NAMES:
        _NAMES[kind] = frozenset(kind.__struct_fields__)
        _INTEGERS[kind] = _integer_fields(kind)
    unknown = []
    for name, value in body.items():
        if name in _NAMES[kind]:
            continue
        if name in refused:
            if value is not None and value not in HARMLESS.get(name, ()):
                raise unsupported(name, refused[name])
        else:
            unknown.append(clip(name))
    for name in _INTEGERS[kind]:
        value = body.get(name)
        if type(value) is float and value.is_integer():
            body[name] = int(value)
    try:
        return msgspec.convert(body, kind), unknown
    except msgspec.ValidationError as exc:
        raise _explain(str(exc)) from None


def _explain(text: str) -> ApiError:
    found = _AT.match(text)
    assert found is not None
    path = (found["path"] or "$").removeprefix("$").removeprefix(".").removesuffix("[...]")
    what = found["what"]
    absent = re.match(r"Object missing required field `(.+)`", what)
    if absent:
        return missing(f"{path}.{absent[1]}" if path else absent[1])
    expected = re.match(r"Expected `(.+)`, got `(.+)`", what)
    if expected:
        wanted = expected[1].replace(" | null", "").replace(" | ", " or ")
        return invalid(path, f"must be {_article(wanted)}, got {expected[2]}", "invalid_type")
    return ApiError("invalid_value", f"{path or 'the request body'}: {clip(what)}", path or None)


def _article(words: str) -> str:
    names = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean"}
    names |= {"array": "a list", "object": "an object"}
    return " or ".join(names.get(word, word) for word in words.split(" or "))
