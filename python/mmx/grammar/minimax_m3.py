"""Calls in the notation of M3, whose tags follow a separator token::

    NS<tool_call>⏎NS<invoke name="f">NS<key>value NS</key>NS</invoke>⏎NS</tool_call>

What is allowed is what the parser (``mmx.parsers``) reads as a value of the schema: how the text of an
element becomes a value depends on all the types that its place may have, so texts that would become something
else are left out, and containers whose elements would be misread are written as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmx.grammar.errors import SchemaError
from mmx.grammar.json_text import JsonText
from mmx.grammar.lark import Grammar, literal, token, without
from mmx.grammar.nodes import MAX_ITEMS, Anything, Array, Choice, Node, Number, Object, Text, Union
from mmx.grammar.patterns import NO_NAME, all_of, matches_nothing
from mmx.grammar.schema import anything
from mmx.grammar.values import means, other_readings
from mmx.parsers.schema import Schema, is_simple_pattern

SEPARATOR = "]<]minimax[>["
BLOCK_OPEN, BLOCK_CLOSE = "<tool_call>", "</tool_call>"
MARKERS = (SEPARATOR, BLOCK_OPEN, BLOCK_CLOSE)

# No brackets and quotes: what closes an answer in time must not begin a name (see ``closing_ids``).
_KEY = "/[^<>\\/\\[\\]{}\\s\\x00-\\x20,\"'$][^<>\\/\\[\\]{}\\s\\x00-\\x20,\"']{0,63}/"


class _Content(NamedTuple):
    """What stands between two tags; ``body`` is None if only nothing can."""

    body: str | None
    may_be_empty: bool

    @property
    def text(self) -> str:
        return "" if self.body is None else f"({self.body})?" if self.may_be_empty else self.body


class CallsM3:
    """Writes call blocks; ``marker_ids`` holds all ``MARKERS``. ``open_keys`` is set once a grammar has
    elements whose name the model chooses: their closing tags must repeat it, which no grammar can say."""

    def __init__(self, grammar: Grammar, marker_ids: Mapping[str, int]) -> None:
        self._grammar = grammar
        self._separator = token(marker_ids[SEPARATOR])
        self._opener, self._closer = token(marker_ids[BLOCK_OPEN]), token(marker_ids[BLOCK_CLOSE])
        self._json = JsonText(grammar, (SEPARATOR,))
        self._known: dict[tuple[int, int], _Content] = {}
        self._nodes: list[Node] = []  # the keys of _known are addresses
        self.open_keys = False

    def block(self, calls: list[str], most: int) -> str:
        """A whole block; its first separator has to come before."""
        one = f'{self._separator} ({" | ".join(calls)}) {self._separator} "</invoke>\\n"'
        return f'{self._opener} "\\n" ({one}){{1,{most}}} {self._separator} {self._closer}'

    def opened(self, block: str) -> str:
        """The block with all that comes before it."""
        return f"{self._separator} {block}"

    def call(self, name: str, node: Node | None, schema: Any) -> str:
        """One call without its closing tag. ``node`` None: any arguments."""
        head = literal(f'<invoke name="{name}">')
        view = Schema(schema, schema)
        body = self._free_members(anything()) if node is None else self._arguments(node, view)
        return self._grammar.rule(f"{head} ({body})" if body else head)

    def _arguments(self, node: Node, view: Schema) -> str:
        if isinstance(node, Union):
            return "(" + " | ".join(f"({self._arguments(b, view)})" for b in node.branches) + ")"
        if isinstance(node, Anything):
            return self._free_members(node)
        if not isinstance(node, Object):
            raise SchemaError("", "parameters must be the schema of an object", "invalid_schema")
        return self._members(node, view).text

    # ---- elements ----------------------------------------------------------------------------------------

    def _element(self, name: str, content: str) -> str:
        bad = not name or name[0] == "/" or name != name.strip() or ">" in name or SEPARATOR in name
        if bad or len(name) > 256 or name.startswith("invoke name="):
            raise SchemaError("", f"the property name {name[:64]!r} can not be the name of an element")
        opening, closing = literal(f"<{name}>"), literal(f"</{name}>")
        return f"{self._separator} {opening} {content} {self._separator} {closing}"

    def _content(self, node: Node, view: Schema) -> _Content:
        key = (id(node), view.identity)
        if key not in self._known:
            self._nodes.append(node)
            body, may_be_empty = self._written(node, view)
            if body is not None:
                body = self._grammar.rule(body)
            self._known[key] = _Content(body, may_be_empty)
        return self._known[key]

    def _written(self, node: Node, view: Schema) -> _Content:
        match node:
            case Text():
                return self._text(node, view)
            case Number(term):
                if "string" in view.types() and not view.types() & {"integer", "number"}:
                    raise SchemaError("", "a number stands where the call notation only knows strings")
                return _Content(self._grammar.terminal(term), False)
            case Choice(values):
                return self._choice(values, view)
            case Union(branches):
                return self._union(branches, view)
            case Array():
                return self._container(node, view, "array")
            case Object():
                return self._container(node, view, "object")
            case Anything():
                return self._free(node, view)

    def _text(self, node: Text, view: Schema) -> _Content:
        types = view.types()
        if "string" not in types:
            raise SchemaError("", "a string stands where the call notation reads something else")
        char, tags = ("[^<]", []) if node.terms else (".", without([SEPARATOR]))
        terms = [
            f"/(?s:{char}{node.count(1)})/",
            *node.terms,
            *tags,
            *(f"~{term}" for term in other_readings(types)),
        ]
        text = all_of(terms, "<") if node.terms else " & ".join(terms)
        body = self._grammar.terminal(text) if node.longest != 0 else None
        # A term may refuse the empty text; nothing is lost by leaving it out.
        return _Content(body, node.shortest == 0 and not node.terms)

    def _choice(self, values: list[Any], view: Schema) -> _Content:
        texts = [
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
        ]
        types = view.types()
        kept = [
            text
            for text, value in zip(texts, values, strict=True)
            if SEPARATOR not in text and means(text, types, value, nested=True)
        ]
        if not kept:
            raise SchemaError("", "an enum has no value that the call notation can express")
        return _Content(self._grammar.choice(filter(None, kept)) or None, "" in kept)

    def _union(self, branches: list[Node], view: Schema) -> _Content:
        found, errors = [], []
        for branch in branches:
            try:
                found.append(self._content(branch, view))
            except SchemaError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        bodies = [content.body for content in found if content.body is not None]
        return _Content(" | ".join(bodies) or None, any(content.may_be_empty for content in found))

    def _container(self, node: Array | Object, view: Schema, kind: str) -> _Content:
        types, read_as = view.types(), view.container()
        try:
            if read_as != kind:
                raise SchemaError("", f"an {kind} stands where the call notation reads something else")
            content = self._items(node, view) if isinstance(node, Array) else self._members(node, view)
        except SchemaError:
            if kind not in types:
                raise
            return _Content(self._json.value(node), False)
        if content.may_be_empty and not means("", types, [] if kind == "array" else {}, nested=True):
            empty = '"[]"' if kind == "array" else '"{}"'
            return _Content(empty if content.body is None else f"{content.body} | {empty}", False)
        return content

    def _items(self, node: Array, view: Schema) -> _Content:
        def item(index: int) -> str:
            return self._element("item", self._content(node.item(index), view.item(index)).text)

        body = ""
        if node.rest is not None and node.longest > len(node.first):
            least, most = max(node.shortest - len(node.first), 0), node.longest - len(node.first)
            rest = self._grammar.rule(item(len(node.first)))
            body = f"{rest}{{{max(least, 0 if node.first else 1)},{most}}}"
        for i in range(len(node.first) - 1, -1, -1):
            body = f"{item(i)} {body}".strip()
            body = f"({body})?" if i >= max(node.shortest, 1) else body
        return _Content(body or None, node.shortest == 0)

    def _members(self, node: Object, view: Schema) -> _Content:
        starts: list[str] = []  # what the elements may begin with, and everything behind it
        tail, may_be_empty = "", node.shortest == 0
        if node.open and (others := self._others(node, view)):
            other = self._grammar.rule(others)
            starts.append(f"{other}{{{max(node.shortest, 1)},{node.longest}}}")
            tail = f"{other}{{{node.shortest},{node.longest}}}"
        for member in reversed(node.members):
            content = self._content(member.node, view.member(member.name))
            element = self._grammar.rule(self._element(member.name, content.text))
            if member.required:
                starts, may_be_empty = [], False
            starts.insert(0, f"{element} {tail}".strip())
            step = element if member.required else f"{element}?"
            tail = self._grammar.rule(f"{step} {tail}") if tail else step
        return _Content(" | ".join(starts) or None, may_be_empty)

    def _others(self, node: Object, view: Schema) -> str:
        declared = [f"~{literal(member.name)}" for member in node.members]
        forms = []
        for names, value, keyed in node.others():
            if keyed is not None and not is_simple_pattern(keyed.source):
                text = f"patternProperties: {keyed.source[:64]!r} is too complex for the call notation"
                raise SchemaError("", text)
            term = " & ".join([_KEY, *names, *declared])
            if node.patterns and matches_nothing(term):
                continue
            content = self._content(value, view.rest() if keyed is None else view.matching(keyed.source))
            forms.append(self._keyed(term, content))
        if node.shortest and not forms:
            raise SchemaError("", NO_NAME)
        return " | ".join(forms)

    def _keyed(self, term: str, content: _Content) -> str:
        self.open_keys = True
        opening = self._grammar.terminal(f'"<" ({term}) ">"')
        closing = self._grammar.terminal(f'"</" ({_KEY}) ">"')
        return f"{self._separator} {opening} {content.text} {self._separator} {closing}"

    # ---- free values -------------------------------------------------------------------------------------

    def _free(self, node: Anything, view: Schema) -> _Content:
        text = self._grammar.terminal(" & ".join(["/(?s:.+)/", *without([SEPARATOR])]))
        bodies = [text]
        if node.inner is not None and view.container() is None:
            item = self._element("item", self._content(node.inner, view.item(0)).text)
            bodies += [f"({item}){{1,{MAX_ITEMS}}}", self._free_members(node, least=1)]
        return _Content(" | ".join(bodies), True)

    def _free_members(self, node: Anything, least: int = 0) -> str:
        if node.inner is None:
            return ""
        content = self._content(node.inner, Schema(None, None))
        keyed = self._grammar.rule(self._keyed(f'{_KEY} & ~"item"', content))
        return f"{keyed}{{{least},{MAX_ITEMS}}}"
