"""The conjunction of two JSON schemas that hold no ``$ref`` and no ``allOf``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmx.grammar.errors import SchemaError

_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_NOTES = frozenset(
    "title description default examples example deprecated readOnly writeOnly $schema $id $comment $anchor "
    "$defs definitions discriminator".split()
)


def merged(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A schema for the values that both allow."""
    joined = dict(one)
    for name, value in other.items():
        if name not in one:
            joined[name] = value
        elif name in _JOIN:
            joined[name] = _JOIN[name](one[name], value)
        elif name not in _NOTES and one[name] != value:
            raise SchemaError(
                path, f"{path} combines two different values of {name}, which can not be enforced"
            )
    if "properties" in joined or "additionalProperties" in joined:
        joined["properties"] = _properties(one, other)
        if not joined["properties"]:
            del joined["properties"]
    return joined


def _both(one: Any, other: Any) -> Any:
    return one if one == other else {"allOf": [one, other]}


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Members of both; one that only a side declares is also bound by what the other says of the rest."""
    sides = (one, other)
    joined: dict[str, Any] = {}
    for name in [*one.get("properties", {}), *other.get("properties", {})]:
        parts = []
        for side in sides:
            if name in side.get("properties", {}):
                parts.append(side["properties"][name])
            elif "additionalProperties" in side:
                parts.append(side["additionalProperties"])
        joined[name] = parts[0] if len(parts) == 1 else _both(*parts)
    return joined


def _types(one: Any, other: Any) -> Any:
    left, right = (value if isinstance(value, list) else [value] for value in (one, other))
    both = [kind for kind in left if kind in right or (kind == "integer" and "number" in right)]
    both += [kind for kind in right if kind == "integer" and "number" in left and kind not in both]
    return both


def _shared(one: list[Any], other: list[Any]) -> list[Any]:
    return [value for value in one if value in other]


def _union(one: list[Any], other: list[Any]) -> list[Any]:
    return [*one, *(value for value in other if value not in one)]


def _pairs(one: list[Any], other: list[Any]) -> list[Any]:
    return [{"allOf": [a, b]} for a in one for b in other]


_JOIN: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(_LARGER, max),
    **dict.fromkeys(_SMALLER, min),
    "type": _types,
    "enum": _shared,
    "required": _union,
    "pattern": _union,
    "properties": lambda one, other: {**one, **other},
    "patternProperties": lambda one, other: {
        **one,
        **{name: _both(one[name], schema) if name in one else schema for name, schema in other.items()},
    },
    "items": _both,
    "additionalProperties": _both,
    "uniqueItems": lambda one, other: one or other,
    "anyOf": _pairs,
    "oneOf": _pairs,
}
