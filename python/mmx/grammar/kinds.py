"""JSON values and the types that schemas give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmx.grammar.errors import SchemaError

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def types_of(flat: Mapping[str, Any], path: str) -> list[str] | None:
    """Types that ``type`` of a schema names, None without one; SchemaError at ``path`` for an unknown one."""
    given = flat.get("type")
    if given is None:
        return None
    types = given if isinstance(given, list) else [given]
    for kind in types:
        if kind not in TYPES:
            where = f"{path}.type"
            raise SchemaError(
                where, f"{where} must be one of {', '.join(TYPES)}, got {kind!r:.40}", "invalid_schema"
            )
    return ["number" if kind == "integer" and "number" in types else kind for kind in dict.fromkeys(types)]


def references(schema: Any) -> list[str]:
    """What all ``$ref`` in a schema point at."""
    found, waiting = [], [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            if isinstance(item.get("$ref"), str):
                found.append(item["$ref"])
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a JSON value has a type."""
    match value:
        case None:
            return kind == "null"
        case bool():
            return kind == "boolean"
        case int():
            return kind in ("integer", "number")
        case float():
            return kind == "number" or (kind == "integer" and value.is_integer())
        case str():
            return kind == "string"
    return kind == ("array" if isinstance(value, list) else "object")


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where true is not 1."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _values(flat: Mapping[str, Any]) -> list[Any] | None:
    if "const" in flat:
        return [flat["const"]]
    return flat["enum"] if isinstance(flat.get("enum"), list) else None


def exclude_each_other(
    one: dict[str, Any], other: dict[str, Any], plain: Callable[[Any], dict[str, Any]]
) -> bool:
    """Whether surely no value matches both schemas: by their values, their types, or the values of a member
    that both require. ``plain`` resolves the schema of a member."""
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not any(same(a, b) for a in values for b in others)
    types = [_kinds(flat, given) for flat, given in ((one, values), (other, others))]
    if types[0] is not None and types[1] is not None and not types[0] & types[1]:
        return True
    if types != [{"object"}, {"object"}]:
        return False
    shared = set(one.get("required", [])) & set(other.get("required", []))
    for name in shared & set(one.get("properties", {})) & set(other.get("properties", {})):
        fixed = [
            _values(plain(flat["properties"][name])) if flat["properties"][name] else None
            for flat in (one, other)
        ]
        one_values, other_values = fixed
        if one_values is None or other_values is None:
            continue
        if not any(same(a, b) for a in one_values for b in other_values):
            return True
    return False


def _kinds(flat: Mapping[str, Any], values: list[Any] | None) -> set[str] | None:
    """Types that a value of the schema may have, integers counted as numbers; None if not known."""
    types = types_of(flat, "oneOf")
    if types is None and values is not None:
        types = [kind for kind in TYPES if any(is_of_type(value, kind) for value in values)]
    if types is None and "properties" in flat and isinstance(flat.get("required"), list):
        return None
    return None if types is None else {"number" if kind == "integer" else kind for kind in types}
