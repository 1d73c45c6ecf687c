"""The conjunction of two JSON schemas that hold no ``$ref`` and no ``allOf``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from mmx.grammar.errors import SchemaError, check_time
from mmx.grammar.kinds import same
from mmx.grammar.valid import of_member

MAX_BRANCHES = 256

_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_NOTES = frozenset(
    "title description default examples example deprecated readOnly writeOnly $schema $id $comment $anchor "
    "$defs definitions discriminator".split()
)
_MEMBERS = ("properties", "patternProperties")


def merged(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A schema for the values that both allow."""
    check_time()
    joined = dict(one)
    for name, value in other.items():
        if name not in one:
            joined[name] = value
        elif name in _JOIN:
            if name in ("anyOf", "oneOf"):
                check_branches([one[name], value], path)
            joined[name] = _JOIN[name](one[name], value)
        elif name not in (*_NOTES, *_MEMBERS, "prefixItems") and not same(one[name], value):
            raise SchemaError(
                path, f"{path} combines two different values of {name}, which can not be enforced"
            )
    for word in _MEMBERS:
        if word in joined:
            joined[word] = _members(word, one, other, path)
    if "prefixItems" in joined:
        count = max(len(side.get("prefixItems", [])) for side in (one, other))
        joined["prefixItems"] = [_both(_item(one, i), _item(other, i)) for i in range(count)]
    return joined


def check_branches(given: Sequence[list[Any]], path: str) -> None:
    """SchemaError where one of each of ``given`` can be taken in too many ways."""
    if prod(map(len, given)) > MAX_BRANCHES:
        raise SchemaError(path, f"{path} has more than {MAX_BRANCHES} branches")


def _both(one: Any, other: Any) -> Any:
    return one if same(one, other) else {"allOf": [one, other]}


def _members(word: str, one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Members of both, by name or by pattern; one that only a side has is also bound by what the other says
    of such a name, or of all other ones."""
    joined: dict[str, Any] = {}
    for name in [*one.get(word, {}), *other.get(word, {})]:
        parts: list[Any] = []
        for side in (one, other):
            if name in side.get(word, {}):
                found = [side[word][name]]
            elif word == "properties":
                found = of_member(side, name, path)
            else:
                found = [side.get("additionalProperties", True)]
            parts += [part for part in found if part is not True and not any(same(part, p) for p in parts)]
        joined[name] = parts[0] if len(parts) == 1 else {"allOf": parts}
    return joined


def _item(side: Mapping[str, Any], index: int) -> Any:
    """The schema of an array's item."""
    prefix = side.get("prefixItems", [])
    return prefix[index] if index < len(prefix) else side.get("items", True)


def _types(one: Any, other: Any) -> Any:
    left, right = (value if isinstance(value, list) else [value] for value in (one, other))
    both = [kind for kind in left if kind in right or (kind == "integer" and "number" in right)]
    both += [kind for kind in right if kind == "integer" and "number" in left and kind not in both]
    return both


def _shared(one: list[Any], other: list[Any]) -> list[Any]:
    found = []
    for value in one:
        check_time()
        found += [value] * any(same(value, kept) for kept in other)
    return found


def _union(one: list[Any], other: list[Any]) -> list[Any]:
    return list(dict.fromkeys([*one, *other]))


def _pairs(one: list[Any], other: list[Any]) -> list[Any]:
    return [{"allOf": [a, b]} for a in one for b in other]


_JOIN: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(_LARGER, max),
    **dict.fromkeys(_SMALLER, min),
    "type": _types,
    "enum": _shared,
    "required": _union,
    "pattern": _union,
    "items": _both,
    "additionalProperties": _both,
    "uniqueItems": lambda one, other: one or other,
    "anyOf": _pairs,
    "oneOf": _pairs,
}
