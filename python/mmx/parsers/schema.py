"""JSON schema questions that decide how the text of an argument becomes a JSON value.

Values are handled as JSON text, so integers keep all their digits and
JSON that the model wrote keeps its form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, Literal
from urllib.parse import unquote

TypeSet = frozenset[str]
STRING: TypeSet = frozenset({"string"})

_BRANCHES = ("anyOf", "oneOf", "allOf")
_EMPTY: Mapping[str, Any] = {}
_OBJECT_WORDS = ("properties", "additionalProperties", "patternProperties")
_MAX_REFERENCES = 32  # in a chain; more is a circle

_ALIASES = {
    **dict.fromkeys(("string", "str", "text", "varchar", "char", "enum"), "string"),
    **dict.fromkeys(("integer", "long", "short", "byte", "bigint"), "integer"),
    **dict.fromkeys(("number", "float", "double", "decimal", "real"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("object", "dict", "map"), "object"),
    **dict.fromkeys(("array", "list", "arr", "sequence", "tuple"), "array"),
    **dict.fromkeys(("null", "none"), "null"),
}
_SIZED = re.compile(r"(u?int|uinteger|float|double)\d*")
_SIMPLE = re.compile(r"(?:[^()\\]|\\[dDsSwW.*+?$^/_-])*")
_REPEATS = re.compile(r"[*+{]")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def pointed_at(root: Any, reference: str) -> Any:
    """The place of ``root`` that ``#/...`` names; KeyError if there is none."""
    node = root
    for part in unquote(reference[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping):
            node = node[part]
        else:
            raise KeyError(part)
    return node


class Schema:
    """One node of a JSON schema. ``root``: the document that local references (``#/...``) point into."""

    __slots__ = ("_node", "_root")

    def __init__(self, node: Any, root: Any) -> None:
        self._root = root
        self._node: Mapping[str, Any] = self._resolve(node)

    def _resolve(self, node: Any) -> Mapping[str, Any]:
        for _ in range(_MAX_REFERENCES):
            if not isinstance(node, Mapping):
                return _EMPTY
            reference = node.get("$ref")
            if reference is None:
                return node
            if not isinstance(reference, str) or not reference.startswith("#"):
                return _EMPTY
            try:
                node = pointed_at(self._root, reference)
            except KeyError:
                return _EMPTY
        return _EMPTY

    def _alternatives(self) -> Iterator[Schema]:
        """This node and all branches of its unions, each once: unions may refer to themselves."""
        seen: set[int] = set()
        waiting: list[Schema] = [self]
        while waiting:
            schema = waiting.pop()
            if id(schema._node) in seen:
                continue
            seen.add(id(schema._node))
            yield schema
            branches = [b for keyword in _BRANCHES if isinstance(b := schema._node.get(keyword), list)]
            waiting += [Schema(node, self._root) for nodes in reversed(branches) for node in reversed(nodes)]

    def types(self) -> TypeSet:
        """Types that a value may have; string if the schema says nothing, not even what a container holds."""
        found: set[str] = set()
        for schema in self._alternatives():
            found.update(schema._declared())
            members = schema._node.get("enum")
            if isinstance(members, list):
                found.update(map(_type_of, members))
            if "const" in schema._node:
                found.add(_type_of(schema._node["const"]))
        if not found and (kind := self.container()) is not None:
            return frozenset({kind})
        return frozenset(found) or STRING

    def _declared(self) -> list[str]:
        declared = self._node.get("type")
        names = declared if isinstance(declared, list) else [declared]
        return [known for name in names if isinstance(name, str) and (known := _known_type(name))]

    def container(self) -> Literal["array", "object"] | None:
        """Whether child elements make an array or an object; null if the schema does not say."""
        for schema in self._alternatives():
            declared = schema._declared()
            for name in declared:
                if name in ("array", "object"):
                    return "array" if name == "array" else "object"
            if isinstance(schema._node.get("items"), Mapping):
                return "array"
            if any(isinstance(schema._node.get(word), Mapping) for word in _OBJECT_WORDS):
                return "object"
        return None

    def member(self, name: str, *, additional: bool = True) -> Schema:
        """Schema of an object's member; an empty one if undeclared. ``additional``: also ask
        ``patternProperties`` and ``additionalProperties``."""
        for schema in self._alternatives():
            properties = schema._node.get("properties")
            if isinstance(properties, Mapping) and name in properties:
                return Schema(properties[name], self._root)
        if not additional:
            return Schema(None, self._root)
        for schema in self._alternatives():
            given = schema._node.get("patternProperties")
            patterns: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
            for source in patterns:
                if is_simple_pattern(source) and re.search(source, name):
                    return Schema(patterns[source], self._root)
        return self.rest()

    def rest(self) -> Schema:
        """Schema of the members that are declared neither by name nor by pattern."""
        for schema in self._alternatives():
            rest = schema._node.get("additionalProperties")
            if isinstance(rest, Mapping):
                return Schema(rest, self._root)
        return Schema(None, self._root)

    def matching(self, source: str) -> Schema:
        """Schema that ``patternProperties`` has under the pattern ``source``."""
        for schema in self._alternatives():
            patterns = schema._node.get("patternProperties")
            if isinstance(patterns, Mapping) and source in patterns:
                return Schema(patterns[source], self._root)
        return Schema(None, self._root)

    @property
    def identity(self) -> int:
        """Equal for two views of one place in a document."""
        return id(self._node)

    def item(self, index: int) -> Schema:
        """Schema of an array's element; an empty one if undeclared."""
        for schema in self._alternatives():
            first = schema._node.get("prefixItems")
            if isinstance(first, list) and index < len(first):
                return Schema(first[index], self._root)
            items = schema._node.get("items")
            if isinstance(items, Mapping):
                return Schema(items, self._root)
        return Schema(None, self._root)


def is_simple_pattern(source: str) -> bool:
    """Whether a regular expression of a client may be run: without groups and with few repetitions it needs
    a time that is polynomial in the name."""
    if len(source) > 200 or _SIMPLE.fullmatch(source) is None or len(_REPEATS.findall(source)) > 2:
        return False
    try:
        re.compile(source)
    except (re.error, OverflowError):
        return False
    return True


def _known_type(name: str) -> str | None:
    name = name.lower()
    if name in _ALIASES:
        return _ALIASES[name]
    sized = _SIZED.fullmatch(name)
    if sized is None:
        return None
    return "integer" if "int" in sized[1] else "number"


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def quoted(text: str) -> str:
    """``text`` as a JSON string."""
    return encode_basestring(text)


def to_json(text: str, types: TypeSet) -> str:
    """JSON text of the value that ``text`` stands for: the first of ``types``, in a fixed order, that fits.

    If none fits: the text itself where it is JSON, else a JSON string.
    """
    if types == STRING:
        return quoted(text)
    bare = text.strip()
    if "null" in types and text.lower() == "null":
        return "null"
    if types & {"integer", "number"} and _INTEGER.fullmatch(bare):
        return _integer_text(bare)
    if "number" in types and _NUMBER.fullmatch(bare) and math.isfinite(float(bare)):
        return _number_text(bare)
    if "boolean" in types and bare.lower() in ("true", "1", "false", "0"):
        return "true" if bare.lower() in ("true", "1") else "false"
    if types & {"object", "array"} and bare[:1] in ("{", "[") and _is_json(bare):
        return bare
    if "string" in types or not _is_json(bare):
        return quoted(text)
    return bare


def _integer_text(bare: str) -> str:
    """Why not ``int``: Python refuses to convert thousands of digits."""
    digits = bare.lstrip("+-").lstrip("0") or "0"
    return "-" + digits if bare[0] == "-" and digits != "0" else digits


def _number_text(bare: str) -> str:
    value = float(bare)
    if not value.is_integer():
        return repr(value)
    exact = Decimal(bare)
    return str(int(exact) if exact == exact.to_integral_value() else int(value))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_json(text: str) -> bool:
    """Whether ``text`` is strict JSON with finite numbers."""
    try:
        json.loads(text, parse_int=str, parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True
