"""Writes grammars in the dialect of Lark that the matcher reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from mmx.grammar.errors import SchemaError

MAX_TEXT = 4000
"""Characters of a text or regular expression: the mask of a token inside takes time in proportion."""
MAX_CHAIN = 1000
"""Rules that lead one into the next: the matcher goes down them on its stack, which ends at some 2,500."""

_SPECIAL = frozenset("\\.+*?()|[]{}^$#&-~/")
_RULE = re.compile(r"\br[0-9]+\b")


def literal(text: str) -> str:
    """``text`` as a string of the grammar. Raises SchemaError without a path."""
    if len(text) > MAX_TEXT:
        raise SchemaError("", f"a text has more than {MAX_TEXT} characters", "grammar_too_complex")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def escaped(text: str) -> str:
    """``text`` for use inside a regular expression between slashes."""
    return "".join(
        f"\\x{{{ord(char):x}}}" if char < " " or char == "\x7f" else "\\" + char if char in _SPECIAL else char
        for char in text
    )


def without(texts: Iterable[str]) -> list[str]:
    """Terminal of everything that contains none of ``texts``, as a list of one; empty if there are none."""
    found = "|".join(map(escaped, texts))
    return [f"~/(?s:.*)({found})(?s:.*)/"] if found else []


def token(token_id: int) -> str:
    """A single token of the vocabulary; it never stands for its text."""
    return f"<[{token_id}]>"


class Grammar:
    """A grammar in the making: rules and terminals get names here, equal terminals share one."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._terminals: dict[str, str] = {}
        self._chains: dict[str, int] = {}
        self._num_rules = 0

    def terminal(self, expression: str) -> str:
        """Name of a terminal; ``expression`` is made of strings, ``/regex/``, ``&``, ``|``, ``~``."""
        if expression not in self._terminals:
            name = self._terminals[expression] = f"T{len(self._terminals)}"
            self._lines.append(f"{name}: {expression}")
        return self._terminals[expression]

    def choice(self, texts: Iterable[str]) -> str:
        """One of some texts. Why a terminal: in a rule each takes one of the matcher's 2,000 places."""
        kept = dict.fromkeys(map(literal, texts))
        filled = [text for text in kept if text != '""']
        ends = [self.terminal(" | ".join(filled))] if filled else []
        return " | ".join([*ends, '""'] if len(filled) < len(kept) else ends)

    def new_rule(self) -> str:
        """A name for a rule that is defined later, so that it may refer to itself."""
        self._num_rules += 1
        return f"r{self._num_rules}"

    def define(self, name: str, body: str) -> str:
        """Raises SchemaError without a path where rules follow each other too deep."""
        chain = 1 + max((self._chains.get(rule, 0) for rule in _RULE.findall(body)), default=0)
        if chain > MAX_CHAIN:
            text = f"more than {MAX_CHAIN} members or places follow each other"
            raise SchemaError("", text, "grammar_too_complex")
        self._chains[name] = chain
        self._lines.append(f"{name}: {body}")
        return name

    def rule(self, body: str) -> str:
        """Name of a new rule."""
        return self.define(self.new_rule(), body)

    def text(self, start: str) -> str:
        """The grammar whose whole text is ``start``."""
        return "\n".join([f"start: {start}", *self._lines]) + "\n"
