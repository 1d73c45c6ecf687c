"""JSON schema -> nodes.

Every document that the nodes allow is valid; not every valid document is allowed: members come in the order
of ``properties``, undeclared ones only where ``additionalProperties`` asks for them or nothing is declared;
arrays and maps without a limit get one (``nodes``), strings end at that of the answer. A keyword that can not
be enforced is an error that names it; unknown keywords and formats are annotations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from itertools import product
from typing import Any

from mmx.grammar.errors import SchemaError, check_time
from mmx.grammar.kinds import exclude_each_other, references, types_of
from mmx.grammar.lark import literal
from mmx.grammar.limits import number
from mmx.grammar.merge import check_branches, merged
from mmx.grammar.nodes import (
    MAX_ITEMS,
    MAX_PATTERN,
    Anything,
    Array,
    Choice,
    KeyedBy,
    Member,
    Node,
    Number,
    Object,
    Text,
    Union,
)
from mmx.grammar.patterns import FORMATS, matches_nothing, pattern
from mmx.grammar.valid import is_valid, of_member
from mmx.parsers.schema import pointed_at

MAX_DEPTH = 16
"""How often references to a schema that contains itself are followed, and how deep free values nest."""
MAX_NODES = 20_000
"""Places of a schema with all its branches and repetitions written out."""
MAX_PATTERNS = 12  # each may double what the matcher keeps in mind
MAX_COUNT = 20_000
"""The largest length or number of items that a schema may ask for."""

_FREE_DEPTH = 6
_REFUSED = (
    *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "contains"),
    *("propertyNames", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"),
)
_HINTS = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties"),
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "additionalItems", "uniqueItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


_NUMBERS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties"),
)
_Shape = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# What the value of a keyword must be; null counts as no number.
_SHAPES: dict[str, _Shape] = {
    **dict.fromkeys(_NUMBERS, ("a number", lambda value: value is None or _is_number(value))),
    **dict.fromkeys(("pattern", "format"), ("a string", lambda value: isinstance(value, str))),
    **dict.fromkeys(
        ("properties", "patternProperties"), ("an object", lambda value: isinstance(value, Mapping))
    ),
    **dict.fromkeys(
        ("enum", "anyOf", "oneOf", "allOf", "prefixItems"), ("a list", lambda value: isinstance(value, list))
    ),
    "required": ("a list of strings", _is_names),
    "uniqueItems": ("true or false", lambda value: isinstance(value, bool)),
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
}


@cache
def anything(depth: int = _FREE_DEPTH) -> Anything:
    """A free value."""
    return Anything(depth, lambda: anything(depth - 1))


def free_object() -> Object:
    """Any JSON object."""
    return Object([], [], anything(), 0, MAX_ITEMS)


def read_schema(schema: Any, path: str) -> Node:
    """The node of a whole schema document. ``path`` is its place in the request. Raises SchemaError."""
    node = _Reader(schema).node(schema, path, 0)
    if node is None:
        raise SchemaError(path, f"{path} allows no value")
    return node


class _Reader:
    """Reads one document. A node is None where no value is possible."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[tuple[int, int], Node | None] = {}
        self._recursive: dict[str, bool] = {}
        self._num_nodes = 0
        self._kept: list[Any] = []  # the keys of _known are addresses

    def node(self, schema: Any, path: str, level: int) -> Node | None:
        key = (id(schema), level)
        if key not in self._known:
            self._kept.append(schema)
            self._known[key] = self._read(schema, path, level)
        return self._known[key]

    def _read(self, schema: Any, path: str, level: int) -> Node | None:
        if isinstance(schema, bool):
            return anything() if schema else None
        flat, level = self._flat(schema, path, level, 0)
        if level > MAX_DEPTH:
            return None
        for keyword in ("anyOf", "oneOf"):
            if keyword in flat:
                return self._union(flat, keyword, path, level)
        return self._typed(flat, path, level)

    # ---- references and combinations -----------------------------------------------------------------

    def _flat(self, schema: Any, path: str, level: int, hops: int) -> tuple[dict[str, Any], int]:
        """The schema without ``$ref`` and ``allOf``, and the level of what it contains."""
        if isinstance(schema, bool):
            return ({} if schema else {"enum": []}), level
        if not isinstance(schema, Mapping):
            raise SchemaError(path, f"{path} must be a JSON schema, an object or a boolean", "invalid_schema")
        check_time()
        if hops > 64:
            raise SchemaError(path, f"{path} refers to itself", "invalid_schema")
        for keyword, value in schema.items():
            if (shape := _SHAPES.get(keyword)) is not None and not shape[1](value):
                where = f"{path}.{keyword}"
                raise SchemaError(where, f"{where} must be {shape[0]}", "invalid_schema")
        for keyword in _REFUSED:
            if keyword in schema:
                where = f"{path}.{keyword}"
                raise SchemaError(where, f"{where}: the keyword {keyword} can not be enforced")
        flat = {
            name: value
            for name, value in schema.items()
            if name not in ("$ref", "allOf") and not (value is None and name in _NUMBERS)
        }
        if isinstance(flat.get("pattern"), str):
            flat["pattern"] = [flat["pattern"]]
        if flat.get("additionalProperties") is True:
            flat["additionalProperties"] = {}
        if isinstance(flat.get("items"), list):  # the form before draft 2020-12
            flat |= {"prefixItems": flat["items"], "items": flat.get("additionalItems", True)}
        if "properties" in flat and "patternProperties" in flat:
            bound = {name: of_member(flat, name, path) for name in flat["properties"]}
            flat["properties"] = {n: s[0] if len(s) == 1 else {"allOf": s} for n, s in bound.items()}
        if "$ref" in schema:
            target = self._target(schema["$ref"], f"{path}.$ref")
            level += self._is_recursive(schema["$ref"])
            if level > MAX_DEPTH:
                return flat, level
            other, level = self._flat(target, path, level, hops + 1)
            flat = merged(other, flat, path)
        for i, part in enumerate(schema.get("allOf", [])):
            other, level = self._flat(part, f"{path}.allOf[{i}]", level, hops + 1)
            flat = merged(flat, other, path)
        return flat, level

    def _target(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise SchemaError(path, f"{path} must refer to a place in the same schema (#/...)")
        try:
            return pointed_at(self._root, reference)
        except KeyError:
            text = f"{path} refers to {reference[:64]!r}, which is not in the schema"
            raise SchemaError(path, text) from None

    def _is_recursive(self, reference: str) -> bool:
        """Whether following the reference may lead to it again."""
        if reference not in self._recursive:
            seen: set[str] = set()
            waiting = [reference]
            while waiting:
                for inner in references(self._target(waiting.pop(), "$ref")):
                    if inner not in seen and inner.startswith("#"):
                        seen.add(inner)
                        waiting.append(inner)
            self._recursive[reference] = reference in seen
        return self._recursive[reference]

    def _union(self, flat: dict[str, Any], keyword: str, path: str, level: int) -> Node | None:
        base = {name: value for name, value in flat.items() if name not in ("anyOf", "oneOf")}
        given = [flat[word] for word in ("anyOf", "oneOf") if word in flat]
        if not all(given):
            raise SchemaError(f"{path}.{keyword}", f"{path}.{keyword} must not be empty", "invalid_schema")
        check_branches(given, path)
        chosen = list(product(*given))
        branches: list[Node] = []
        if "oneOf" in flat:
            self._check_disjoint(flat["oneOf"], f"{path}.oneOf", level)
        for i, parts in enumerate(chosen):
            where = f"{path}.{keyword}[{i}]"
            joined, inner = dict(base), level
            for part in parts:
                other, below = self._flat(part, where, level, 0)
                inner = max(inner, below)
                joined = merged(joined, other, where)
            if inner > MAX_DEPTH:
                continue
            self._kept.append(joined)
            nested = "anyOf" in joined or "oneOf" in joined
            node = self._union(joined, keyword, where, inner) if nested else self._typed(joined, where, inner)
            branches += [] if node is None else node.branches if isinstance(node, Union) else [node]
        return _joined(branches)

    def _check_disjoint(self, branches: list[Any], path: str, level: int) -> None:
        """``oneOf`` means exactly one: the branches must exclude each other by type or by a fixed member."""
        flats = [self._flat(branch, path, level, 0)[0] for branch in branches]
        for i, one in enumerate(flats):
            for j in range(i):
                if not exclude_each_other(flats[j], one, self._plain):
                    text = f"{path}: branches {j} and {i} may both match a value; use anyOf"
                    raise SchemaError(path, text)

    def _plain(self, schema: Any) -> dict[str, Any]:
        return self._flat(schema, "oneOf", 0, 0)[0]

    # ---- one type --------------------------------------------------------------------------------------

    def _typed(self, flat: dict[str, Any], path: str, level: int) -> Node | None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise SchemaError(path, f"{path} has too many branches to be enforced", "grammar_too_complex")
        types = types_of(flat, path)
        if "const" in flat or "enum" in flat:
            return self._choice(flat, path)
        if types is None:
            types = [kind for kind, words in _HINTS.items() if any(word in flat for word in words)][:1]
            if not types:
                return anything()
        nodes = [self._of_type(kind, flat, path, level) for kind in types]
        return _joined([node for node in nodes if node is not None])

    def _choice(self, flat: dict[str, Any], path: str) -> Node | None:
        others = {name: value for name, value in flat.items() if name != "enum"}
        unique = {json.dumps(value): value for value in flat.get("enum", [flat.get("const")])}
        values = [value for value in unique.values() if is_valid(value, others, self._plain, path)]
        return Choice(values) if values else None

    def _of_type(self, kind: str, flat: dict[str, Any], path: str, level: int) -> Node | None:
        match kind:
            case "null":
                return Choice([None])
            case "boolean":
                return Choice([True, False])
            case "string":
                return self._text(flat, path)
            case "array":
                return self._array(flat, path, level)
            case "object":
                return self._object(flat, path, level)
        return self._number(flat, path, kind == "integer")

    def _text(self, flat: dict[str, Any], path: str) -> Node | None:
        shortest, given = _count(flat, "minLength", path), _count(flat, "maxLength", path)
        if given is not None and (shortest or 0) > given:
            return None
        if given == 0 and not is_valid("", flat, self._plain, path):
            return None
        sources = flat.get("pattern", [])
        if len(sources) > MAX_PATTERNS:
            text = f"{path} has more than {MAX_PATTERNS} patterns for one string"
            raise SchemaError(path, text, "grammar_too_complex")
        if sources and given is None:
            given = max(MAX_PATTERN, 2 * (shortest or 0))
        terms = [pattern(source, f"{path}.pattern") for source in sources]
        known = FORMATS.get(flat.get("format", ""))
        if known is not None:
            terms.append(f"/{known.replace('/', chr(92) + '/')}/")
        return Text(shortest or 0, given, tuple(terms))

    def _number(self, flat: dict[str, Any], path: str, integer: bool) -> Node | None:
        multiple = flat.get("multipleOf")
        if multiple is not None and multiple != 1:
            raise SchemaError(
                f"{path}.multipleOf", f"{path}.multipleOf: the keyword multipleOf can not be enforced"
            )
        limits = {word: Decimal(repr(flat[word])) if word in flat else None for word in _HINTS["number"][:4]}
        term = number(
            integer=integer or multiple == 1,
            minimum=limits["minimum"],
            maximum=limits["maximum"],
            above=limits["exclusiveMinimum"],
            below=limits["exclusiveMaximum"],
        )
        return None if matches_nothing(term) else Number(term)

    def _array(self, flat: dict[str, Any], path: str, level: int) -> Node | None:
        if flat.get("uniqueItems") is True:
            raise SchemaError(
                f"{path}.uniqueItems", f"{path}.uniqueItems: the keyword uniqueItems can not be enforced"
            )
        shortest, longest = _count(flat, "minItems", path) or 0, _count(flat, "maxItems", path)
        prefix, items = flat.get("prefixItems", []), flat.get("items", True)
        first: list[Node] = []
        ended = False
        for i, schema in enumerate(prefix):
            node = self.node(schema, f"{path}.prefixItems[{i}]", level)
            if node is None:
                ended = True
                break
            first.append(node)
        rest = None if ended else self.node(items, f"{path}.items", level)
        longest = max(MAX_ITEMS, shortest) if longest is None else longest
        if rest is None:
            longest = min(longest, len(first))
        return Array(first[:longest], rest, shortest, longest) if shortest <= longest else None

    def _object(self, flat: dict[str, Any], path: str, level: int) -> Node | None:
        properties, required = flat.get("properties", {}), dict.fromkeys(flat.get("required", []))
        patterns = self._patterns(flat, path, level)
        rest_schema = flat.get("additionalProperties", not properties)
        rest = self.node(rest_schema, f"{path}.additionalProperties", level)
        members: list[Member] = []
        for name, schema in properties.items():
            node = self.node(schema, f"{path}.properties.{name}", level)
            if node is not None:
                members.append(Member(name, node, name in required))
            elif name in required:
                return None
            else:
                patterns.append(KeyedBy(name, literal(name), None))
        for name in required:
            if name not in properties:
                schemas = of_member(flat, name, path)
                schema = schemas[0] if len(schemas) == 1 else {"allOf": schemas}
                node = self.node(schema, f"{path}.additionalProperties", level)
                if node is None:
                    return None
                members.append(Member(name, node, True))
        return self._counted(flat, path, members, patterns, rest)

    def _patterns(self, flat: dict[str, Any], path: str, level: int) -> list[KeyedBy]:
        found = []
        for source, schema in flat.get("patternProperties", {}).items():
            where = f"{path}.patternProperties.{source}"
            found.append(KeyedBy(source, pattern(source, where), self.node(schema, where, level)))
        return found

    def _counted(
        self,
        flat: dict[str, Any],
        path: str,
        members: list[Member],
        patterns: list[KeyedBy],
        rest: Node | None,
    ) -> Node | None:
        """Apply ``minProperties`` and ``maxProperties``."""
        least, most = _count(flat, "minProperties", path) or 0, _count(flat, "maxProperties", path)
        num_required = sum(member.required for member in members)
        is_open = rest is not None or any(keyed.node is not None for keyed in patterns)
        if most is not None:
            if num_required > most:
                return None
            optional = [member for member in members if not member.required][: most - num_required]
            members = [member for member in members if member.required or member in optional]
        room = MAX_ITEMS if most is None else most - len(members)
        missing = max(0, least - num_required)
        if missing and not (is_open and room >= missing):
            promoted = [member for member in members if not member.required][:missing]
            members = [Member(m.name, m.node, True) if m in promoted else m for m in members]
            missing -= len(promoted)
            if missing and not (is_open and room >= missing):
                return None
        return Object(members, patterns, rest, missing, max(room, missing) if is_open else 0)


def _joined(nodes: list[Node]) -> Node | None:
    return nodes[0] if len(nodes) == 1 else Union(nodes) if nodes else None


def _count(flat: Mapping[str, Any], name: str, path: str) -> int | None:
    value = flat.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise SchemaError(f"{path}.{name}", f"{path}.{name} must be a number of at least 0", "invalid_schema")
    if value > MAX_COUNT:
        raise SchemaError(f"{path}.{name}", f"{path}.{name} must be at most {MAX_COUNT} to be enforced")
    return int(value)
