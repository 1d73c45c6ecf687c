"""Calls in the notation of M2::

    <minimax:tool_call>⏎<invoke name="f">⏎<parameter name="k">value</parameter>⏎</invoke>⏎</minimax:tool_call>

Strings are written as they are, everything else as JSON. What is allowed is what the parser (``mmx.parsers``)
reads as a value of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmx.grammar.errors import SchemaError
from mmx.grammar.json_text import JsonText
from mmx.grammar.lark import Grammar, literal, token, without
from mmx.grammar.nodes import MAX_ITEMS, Anything, Array, Choice, Node, Number, Object, Text, Union
from mmx.grammar.patterns import all_of
from mmx.grammar.values import means, other_readings
from mmx.parsers.schema import STRING, Schema, TypeSet

BLOCK_OPEN, BLOCK_CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
MARKERS = (BLOCK_OPEN, BLOCK_CLOSE)
PARAMETER_CLOSE = "</parameter>"

_TAGS = (PARAMETER_CLOSE, "<parameter name=", "</invoke>")
_NAME = "/[^<>\\s\\x00-\\x20\"'][^<>\\s\\x00-\\x20\"']{0,63}/"


class CallsM2:
    """Writes call blocks; ``marker_ids`` holds all ``MARKERS``."""

    open_keys = False

    def __init__(self, grammar: Grammar, marker_ids: Mapping[str, int]) -> None:
        self._grammar = grammar
        self._opener, self._closer = token(marker_ids[BLOCK_OPEN]), token(marker_ids[BLOCK_CLOSE])
        self._json = JsonText(grammar, _TAGS)

    def block(self, calls: list[str], most: int) -> str:
        """A block behind its opener."""
        return f'"\\n" (({" | ".join(calls)}) "</invoke>\\n"){{1,{most}}} {self._closer}'

    def opened(self, block: str) -> str:
        """The block with its opener."""
        return f"{self._opener} {block}"

    def call(self, name: str, node: Node | None, schema: Any) -> str:
        """One call without its closing tag. ``node`` None: any arguments."""
        head = literal(f'<invoke name="{name}">\n')
        body = self._free() if node is None else self._arguments(node, Schema(schema, schema))
        return self._grammar.rule(f"{head} {body}".strip())

    def _arguments(self, node: Node, view: Schema) -> str:
        if isinstance(node, Union):
            return "(" + " | ".join(f"({self._arguments(b, view)})" for b in node.branches) + ")"
        if isinstance(node, Anything):
            return self._free()
        if not isinstance(node, Object):
            raise SchemaError("", "parameters must be the schema of an object", "invalid_schema")
        parts = []
        for member in node.members:
            name = member.name
            if not name or ">" in name or name != name.strip() or name[0] in "\"'":
                raise SchemaError("", f"the property name {name[:64]!r} can not be the name of a parameter")
            value = self._value(member.node, view.member(name, additional=False).types())
            parameter = f'{literal(f"<parameter name={chr(34)}{name}{chr(34)}>")} {value} "\\n"'
            parts.append(parameter if member.required else f"({parameter})?")
        if node.open:
            parts += self._others(node)
        return " ".join(parts)

    def _others(self, node: Object) -> list[str]:
        """Parameters without declaration are read as strings."""
        strings = isinstance(node.rest, Text | Anything)
        if not strings or node.rest is None:
            if node.shortest:
                raise SchemaError("", "undeclared parameters can only be strings in the call notation")
            return []
        patterns = [f"~{keyed.term}" for keyed in node.patterns]
        declared = [f"~{literal(member.name)}" for member in node.members]
        name = self._grammar.terminal(
            f'"<parameter name=\\"" ({" & ".join([_NAME, *patterns, *declared])}) "\\">"'
        )
        value = self._value(node.rest, STRING)
        return [f'({name} {value} "\\n"){{{node.shortest},{node.longest}}}']

    def _free(self) -> str:
        name = self._grammar.terminal(f'"<parameter name=\\"" {_NAME} "\\">"')
        return f'({name} {self._text(Text(), STRING)} "\\n"){{0,{MAX_ITEMS}}}'

    def _value(self, node: Node, types: TypeSet) -> str:
        """A value with its closing tag."""
        match node:
            case Text():
                return self._text(node, types)
            case Anything():
                return self._text(Text(), STRING)
            case Number(term):
                if "string" in types and not types & {"integer", "number"}:
                    raise SchemaError("", "a number stands where the call notation only knows strings")
                return f"{self._grammar.terminal(term)} {literal(PARAMETER_CLOSE)}"
            case Choice(values):
                return self._choice(values, types)
            case Union(branches):
                return self._union(branches, types)
            case Array() | Object():
                if not types & {"array", "object"} and "string" in types:
                    raise SchemaError("", "a container stands where the call notation only knows strings")
                return f"{self._json.value(node)} {literal(PARAMETER_CLOSE)}"

    def _union(self, branches: list[Node], types: TypeSet) -> str:
        found, errors = [], []
        for branch in branches:
            try:
                found.append(self._value(branch, types))
            except SchemaError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return self._grammar.rule(" | ".join(found))

    def _text(self, node: Text, types: TypeSet) -> str:
        if "string" not in types:
            raise SchemaError("", "a string stands where the call notation reads something else")
        if node.longest == 0:
            return literal(PARAMETER_CLOSE)
        # Behind a pattern "<" is left out altogether: the tags and a pattern at once are a large automaton.
        char, tags = ("[^<]", []) if node.terms else (".", without(_TAGS))
        terms = [
            f"/(?s:{char}{node.count()})/",
            *node.terms,
            *tags,
            *(f"~{term}" for term in other_readings(types)),
        ]
        text = all_of(terms, "<") if node.terms else " & ".join(terms)
        return self._grammar.terminal(f"({text}) {literal(PARAMETER_CLOSE)}")

    def _choice(self, values: list[Any], types: TypeSet) -> str:
        kept = []
        for value in values:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if means(text, types, value, nested=False) and not any(tag in text for tag in _TAGS):
                kept.append(text + PARAMETER_CLOSE)
        if not kept:
            raise SchemaError("", "an enum has no value that the call notation can express")
        return self._grammar.choice(kept)
