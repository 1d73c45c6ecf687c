"""Nodes as JSON text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mmx.grammar.errors import SchemaError
from mmx.grammar.lark import Grammar, literal, without
from mmx.grammar.limits import number
from mmx.grammar.nodes import MAX_ITEMS, Anything, Array, Choice, Member, Node, Number, Object, Text, Union
from mmx.grammar.patterns import NO_NAME, all_of, matches_nothing

# No lone surrogates: they are no text.
_CHAR = (
    '/[^"\\\\\\x00-\\x1F\\x7F]|\\\\(["\\\\\\/bfnrt]'
    "|u([0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))/"
)
_PLAIN = '[^"\\\\\\x00-\\x1F\\x7F]'
_QUOTE = '"\\""'
_SPACE = "/[ ]|\\n[ ]{0,32}/"
KEY_LENGTH = 64

ANY_NUMBER = number(integer=False, minimum=None, maximum=None, above=None, below=None)


class JsonText:
    """Writes nodes into ``grammar``. ``forbidden``: texts that no string may contain."""

    def __init__(self, grammar: Grammar, forbidden: Sequence[str] = ()) -> None:
        self._grammar = grammar
        self._forbidden = tuple(forbidden)
        self._symbols: dict[int, str] = {}
        self._nodes: list[Node] = []  # the keys of _symbols are addresses
        space = grammar.terminal(_SPACE)
        self._space = f"{space}?"
        self._comma = f'"," {space}?'

    def value(self, node: Node) -> str:
        """Symbol that stands for every value of ``node``."""
        if id(node) not in self._symbols:
            self._nodes.append(node)
            name = self._symbols[id(node)] = self._grammar.new_rule()
            try:
                self._grammar.define(name, self._body(node))
            except SchemaError:
                del self._symbols[id(node)]
                raise
        return self._symbols[id(node)]

    def _body(self, node: Node) -> str:
        match node:
            case Text():
                return self._text(node)
            case Number(term):
                return self._grammar.terminal(term)
            case Choice(values):
                texts = [json.dumps(value, ensure_ascii=False) for value in values]
                kept = [text for text in texts if not any(word in text for word in self._forbidden)]
                if not kept:
                    raise SchemaError("", "an enum has no value that the output may contain")
                return self._grammar.choice(kept)
            case Array():
                return self._array(node)
            case Object():
                return self._object(node)
            case Union(branches):
                return self._union(branches)
            case Anything():
                return " | ".join(map(self.value, _spelled_out(node)))

    def _union(self, branches: Sequence[Node]) -> str:
        found, errors = [], []
        for branch in branches:
            try:
                found.append(self.value(branch))
            except SchemaError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return " | ".join(found)

    def _without_forbidden(self, term: str) -> str:
        return " & ".join([term, *without(self._forbidden)])

    def _plain_char(self) -> str:
        """Of texts with a pattern: what is forbidden begins with "<" or holds one; a pattern and it at once
        are a large automaton."""
        return _PLAIN.replace("[^", "[^<") if self._forbidden else _PLAIN

    def _text(self, node: Text) -> str:
        if node.longest == 0:
            return literal('""')
        count = node.count()
        if not node.terms:
            char = self._grammar.terminal(_CHAR)
            return self._grammar.terminal(self._without_forbidden(f"({_QUOTE} {char}{count} {_QUOTE})"))
        char = self._plain_char()
        left_out = "control characters, backslashes, quotes" + (", <" if self._forbidden else "")
        inner = all_of([f"/{char}{count}/", *node.terms], left_out)
        return self._grammar.terminal(f"{_QUOTE} ({inner}) {_QUOTE}")

    def _array(self, node: Array) -> str:
        tail = ""
        if node.rest is not None and node.longest > len(node.first):
            num_fixed = max(len(node.first), 1)
            least, most = max(node.shortest - num_fixed, 0), node.longest - num_fixed
            if most:
                tail = f"({self._comma} {self.value(node.rest)}){{{least},{most}}}"
        for i in range(len(node.first) - 1, 0, -1):
            tail = f"{self._comma} {self.value(node.first[i])} {tail}"
            tail = f"({tail})?" if i >= node.shortest else tail
        if node.longest == 0:
            return '"[]"'
        filled = f'"[" {self._space} {self.value(node.item(0))} {tail} {self._space} "]"'
        return f'{filled} | "[]"' if node.shortest == 0 else filled

    def _object(self, node: Object) -> str:
        """``rest`` of the members behind each one is a rule, so that the grammar grows with their number."""
        other = self._other(node)
        tail = f"({self._comma} {other}){{{node.shortest},{node.longest}}}" if other else ""
        starts: list[str] = []
        if other:
            more = f"({self._comma} {other}){{{max(node.shortest - 1, 0)},{node.longest - 1}}}"
            starts.append(f"{other} {more}" if node.longest > 1 else other)
        may_be_empty = node.shortest == 0
        for member in reversed(node.members):
            written = self._member(member)
            if member.required:
                starts, may_be_empty = [], False
            starts.insert(0, f"{written} {tail}")
            step = f"{self._comma} {written}"
            tail = (
                self._grammar.rule(f"{step} {tail}" if member.required else f"({step})? {tail}".strip())
                if (member.required or tail)
                else f"({step})?"
            )
        if not starts:
            return '"{}"'
        filled = f'"{{" {self._space} ({" | ".join(starts)}) {self._space} "}}"'
        return f'{filled} | "{{}}"' if may_be_empty else filled

    def _member(self, member: Member) -> str:
        key = literal(json.dumps(member.name, ensure_ascii=False) + ":")
        return f'{key} " "? {self.value(member.node)}'

    def _other(self, node: Object) -> str:
        """A member that is not declared by name."""
        if not node.open:
            return ""
        char = self._plain_char() if node.patterns else _PLAIN
        plain = f"/{char}{{1,{KEY_LENGTH}}}/"
        declared = [f"~{literal(member.name)}" for member in node.members]
        texts = []
        for names, value, _ in node.others():
            term = " & ".join([plain, *names, *declared])
            if node.patterns and matches_nothing(term):
                continue
            term = term if node.patterns else self._without_forbidden(term)
            key = self._grammar.terminal(f"{_QUOTE} ({term}) {_QUOTE}")
            texts.append(f'{key} ":" " "? {self.value(value)}')
        if node.shortest and not texts:
            raise SchemaError("", NO_NAME)
        return self._grammar.rule(" | ".join(texts)) if texts else ""


_SPELLED: dict[int, list[Node]] = {}


def _spelled_out(node: Anything) -> list[Node]:
    """The types of a free value."""
    if node.depth not in _SPELLED:
        branches: list[Node] = [Text(), Choice([None, True, False]), Number(ANY_NUMBER)]
        if node.inner is not None:
            branches += [Array([], node.inner, 0, MAX_ITEMS), Object([], [], node.inner, 0, MAX_ITEMS)]
        _SPELLED[node.depth] = branches
    return _SPELLED[node.depth]
