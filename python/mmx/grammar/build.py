"""From what a request asks for to one grammar.

An answer is a document (JSON, or text that a regular expression, a list of choices or a grammar describes), a
block of calls, or, where a client allows both, either of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from mmx.grammar.errors import SchemaError, reason_of
from mmx.grammar.json_text import JsonText
from mmx.grammar.lark import MAX_CHAIN, Grammar
from mmx.grammar.minimax_m2 import MARKERS as MARKERS_M2
from mmx.grammar.minimax_m2 import PARAMETER_CLOSE, CallsM2
from mmx.grammar.minimax_m3 import MARKERS as MARKERS_M3
from mmx.grammar.minimax_m3 import SEPARATOR, CallsM3
from mmx.grammar.nodes import Node
from mmx.grammar.patterns import whole
from mmx.grammar.schema import free_object, read_schema

Family = Literal["m2", "m3"]

MAX_CALLS = 64
"""Calls in one block where parallel calls are allowed."""
MAX_GRAMMAR = 100_000
"""Characters of a grammar that a client writes."""
MARKERS: dict[Family, tuple[str, ...]] = {"m2": MARKERS_M2, "m3": MARKERS_M3}
TRIGGER: dict[Family, str] = {"m2": MARKERS_M2[0], "m3": SEPARATOR}
"""The token that opens a call."""


@dataclass(frozen=True)
class Document:
    """``kind`` "json_object", "json_schema", "regex", "choice" or "grammar" with its ``value``, which stands
    in the request under ``path``."""

    kind: str
    value: Any
    path: str


@dataclass(frozen=True)
class CallTool:
    """A function. ``enforced``: its arguments must follow ``parameters`` (a schema, None: none)."""

    name: str
    parameters: Any
    enforced: bool
    path: str


@dataclass(frozen=True)
class Calls:
    """A block of calls of some ``tools``, at most ``most`` of them."""

    family: Family
    tools: Sequence[CallTool]
    most: int
    marker_ids: Mapping[str, int]


@dataclass(frozen=True)
class Built:
    """``grammar`` and what the end of an answer needs: ``reserve`` tokens, in which ``closers`` (texts or
    markers) are preferred and ``closing`` is written. ``open_keys``: closing tags must repeat names that the
    model has chosen."""

    grammar: str
    reserve: int
    closers: tuple[str, ...] = ()
    closing: str = ""
    open_keys: bool = False


_JSON_CLOSERS = ("}", "]", '"')


def build(
    document: Document | None,
    calls: Calls | None,
    *,
    family: Family | None = None,
    after_trigger: bool = False,
) -> Built:
    """The grammar of one of the two, or of either. ``family``: the notation of calls that a reader of the
    answer looks for, asked for or not. ``after_trigger``: of a block whose opening token has been written.

    Raises SchemaError.
    """
    if document is not None and document.kind == "grammar":
        if calls is not None:
            raise SchemaError(document.path, f"{document.path}: a grammar can not be combined with calls")
        return Built(_own_grammar(document), 0)
    grammar = Grammar()
    starts, costs = [], []
    closers: tuple[str, ...] = ()
    closing, open_keys = "", False
    if document is not None:
        start, cost = _document(grammar, document, (SEPARATOR,) if family == "m3" else ())
        starts.append(start)
        costs.append(cost)
        closers = (*_JSON_CLOSERS, ",") if document.kind.startswith("json") else ()
    if calls is not None:
        writer = _writer(grammar, calls)
        nodes = [_arguments(tool) for tool in calls.tools]
        written = [_call(writer, tool, node) for tool, node in zip(calls.tools, nodes, strict=True)]
        block = writer.block(written, calls.most)
        if after_trigger:
            starts.append(block)
        else:
            starts.append(writer.opened(block) if calls.family == "m3" else f'"\\n"? {writer.opened(block)}')
        costs += [
            len(t.name) + 60 + (40 if n is None else n.closing)
            for t, n in zip(calls.tools, nodes, strict=True)
        ]
        open_keys = writer.open_keys
        if calls.family == "m3":
            closers = (MARKERS_M3[2], SEPARATOR, *_JSON_CLOSERS, "</", "/", "<", ">", ",")
        else:
            closers, closing = (MARKERS_M2[1], *_JSON_CLOSERS, ","), PARAMETER_CLOSE
    # Forced text comes in tokens of two characters at least, as measured with random weights.
    reserve = max(costs) // 2 + 32
    return Built(grammar.text(" | ".join(starts)), reserve, closers, closing, open_keys)


def _writer(grammar: Grammar, calls: Calls) -> CallsM2 | CallsM3:
    return CallsM3(grammar, calls.marker_ids) if calls.family == "m3" else CallsM2(grammar, calls.marker_ids)


def _arguments(tool: CallTool) -> Node | None:
    if not tool.enforced:
        return None
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    return read_schema(schema if tool.parameters is None else tool.parameters, tool.path)


def _call(writer: CallsM2 | CallsM3, tool: CallTool, node: Node | None) -> str:
    with _placed(tool.path):
        return writer.call(tool.name, node, tool.parameters)


@contextmanager
def _placed(path: str) -> Iterator[None]:
    """Errors that know no place get this one."""
    try:
        yield
    except SchemaError as error:
        if error.path:
            raise
        raise SchemaError(path, f"{path}: {error}", error.code) from None


def _document(grammar: Grammar, document: Document, forbidden: Sequence[str]) -> tuple[str, int]:
    """(start symbol, characters to close it)"""
    value, path = document.value, document.path
    match document.kind:
        case "json_object" | "json_schema":
            node = free_object() if document.kind == "json_object" else read_schema(value, path)
            with _placed(path):
                return JsonText(grammar, forbidden).value(node), node.closing
        case "regex":
            try:
                return grammar.terminal(whole(value, path)), 0
            except SchemaError as error:
                code = "invalid_grammar" if error.code == "invalid_schema" else error.code
                raise SchemaError(path, str(error), code) from None
        case "choice":
            with _placed(path):
                return grammar.rule(grammar.choice(value)), max(map(len, value))
    raise AssertionError(document.kind)


def _own_grammar(document: Document) -> str:
    """The client's grammar: Lark, or GBNF, which is translated."""
    text: str = document.value
    rules = sum(":" in line for line in text.splitlines())
    if rules > MAX_CHAIN or len(text) > MAX_GRAMMAR:
        most = f"at most {MAX_CHAIN} rules and {MAX_GRAMMAR} characters"
        raise SchemaError(document.path, f"{document.path} must have {most}", "grammar_too_complex")
    if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
        try:
            text = any_to_lark(text)
        except Exception as error:
            message = f"{document.path} is not a grammar: {str(error)[:160]}"
            raise SchemaError(document.path, message, "invalid_grammar") from None
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(text)
    if failed:
        reason = reason_of("\n".join(messages))
        raise SchemaError(document.path, f"{document.path} is not a grammar: {reason}", "invalid_grammar")
    return text
