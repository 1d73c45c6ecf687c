"""Whether a JSON value is valid: values of ``enum`` and ``const`` may be excluded by other keywords."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from operator import ge, gt, le, lt
from typing import Any

from mmx.grammar.kinds import is_of_type, same, types_of
from mmx.grammar.patterns import FORMATS, finds

MAX_DEPTH = 64
_LIMITS = {"minimum": ge, "maximum": le, "exclusiveMinimum": gt, "exclusiveMaximum": lt}
Plain = Callable[[Any], Mapping[str, Any]]


def is_valid(value: Any, flat: Mapping[str, Any], plain: Plain, path: str, depth: int = 0) -> bool:
    """``flat`` is a schema without ``$ref`` and ``allOf``, ``plain`` makes one of any schema."""

    def inside(part: Any, schema: Any) -> bool:
        return depth < MAX_DEPTH and is_valid(part, plain(schema), plain, path, depth + 1)

    types = types_of(flat, path)
    if types is not None and not any(is_of_type(value, kind) for kind in types):
        return False
    if "const" in flat and not same(value, flat["const"]):
        return False
    if "enum" in flat and not any(same(value, other) for other in flat["enum"]):
        return False
    if "anyOf" in flat and not any(inside(value, branch) for branch in flat["anyOf"]):
        return False
    if "oneOf" in flat and sum(inside(value, branch) for branch in flat["oneOf"]) != 1:
        return False
    match value:
        case None | bool():
            return True
        case int() | float():
            return _is_valid_number(value, flat)
        case str():
            return _has_size(value, flat, "Length") and _is_valid_text(value, flat, path)
        case list():
            prefix = flat.get("prefixItems", [])
            schemas = [*prefix, *[flat.get("items", True)] * (len(value) - len(prefix))]
            unique = flat.get("uniqueItems") is not True or not any(
                same(value[i], value[j]) for i in range(len(value)) for j in range(i)
            )
            return unique and _has_size(value, flat, "Items") and all(map(inside, value, schemas))
    members_valid = all(
        inside(member, schema) for name, member in value.items() for schema in of_member(flat, name, path)
    )
    has_all = all(name in value for name in flat.get("required", []))
    return has_all and members_valid and _has_size(value, flat, "Properties")


def of_member(flat: Mapping[str, Any], name: str, path: str) -> list[Any]:
    """The schemas of an object that bind its member ``name``."""
    properties = flat.get("properties", {})
    patterns: Mapping[str, Any] = flat.get("patternProperties", {})
    found = [properties[name]] if name in properties else []
    found += [
        patterns[source] for source in patterns if finds(source, name, f"{path}.patternProperties.{source}")
    ]
    return found or [flat.get("additionalProperties", True)]


def _has_size(value: Any, flat: Mapping[str, Any], what: str) -> bool:
    least, most = flat.get(f"min{what}"), flat.get(f"max{what}")
    return (least is None or len(value) >= least) and (most is None or len(value) <= most)


def _is_valid_number(value: float, flat: Mapping[str, Any]) -> bool:
    exact = Fraction(repr(value))
    multiple = flat.get("multipleOf")
    return (multiple is None or exact % Fraction(repr(multiple)) == 0) and all(
        holds(exact, Fraction(repr(flat[word]))) for word, holds in _LIMITS.items() if word in flat
    )


def _is_valid_text(value: str, flat: Mapping[str, Any], path: str) -> bool:
    known = FORMATS.get(flat.get("format", ""))
    sources = [*flat.get("pattern", []), *([f"^(?:{known})$"] if known is not None else [])]
    return all(finds(source, value, f"{path}.pattern") for source in sources)
