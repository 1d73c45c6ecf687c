"""Builds the arguments object of one call from named texts and elements, and streams its JSON.

Two results are kept in step: the deltas, written as early as the schema allows, and the final JSON text.
What was written can not be taken back, so where a later element changes an earlier value (a repeated name,
an element inside what looked like a string) the member is written once more at the end of its object: the
last one of equal keys holds in JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mmx.parsers.schema import STRING, Schema, TypeSet, quoted, to_json


@dataclass(slots=True)
class _Node:
    """An open element.

    ``live``: its value is written in place as it grows. ``prefix``: what has to be written before the value,
    null once it is. ``in_quotes``: the value is a string, and its opening quote is written.
    ``rewrite``: names of members that must be written again before the object closes.
    ``stale``: what was written of this value is not its final form.
    """

    name: str
    schema: Schema
    types: TypeSet
    live: bool
    prefix: str | None
    kind: Literal["array", "object"] | None = None
    in_quotes: bool = False
    stale: bool = False
    num_written: int = 0
    text: list[str] = field(default_factory=list)
    children: list[tuple[str, str]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    rewrite: dict[str, None] = field(default_factory=dict)


class Arguments:
    """Arguments of one call.

    ``write`` receives the JSON deltas. ``nested`` selects the rules of M3 (elements inside elements, repeated
    names make a list, an empty element of container type is an empty container) or those of M2 (flat
    parameters, the last of equal names holds).
    """

    def __init__(self, schema: Schema, write: Callable[[str], None], *, nested: bool) -> None:
        self._write = write
        self._nested = nested
        root = _Node("", schema, frozenset({"object"}), live=True, prefix="{", kind="object")
        self._stack = [root]

    @property
    def open_names(self) -> list[str]:
        """Names of the open elements, outermost first."""
        return [node.name for node in self._stack[1:]]

    def open(self, name: str) -> None:
        """Begin the parameter, or the element inside the open one, called ``name``."""
        parent = self._stack[-1]
        if parent.kind is None:
            self._make_container(parent, name)
        if parent.kind == "array":
            schema, key = parent.schema.item(len(parent.children)), ""
        else:
            schema, key = parent.schema.member(name, additional=self._nested), quoted(name) + ": "
        live = parent.live
        if self._nested and parent.kind == "object" and name in parent.names:
            live = False
            parent.rewrite[name] = None
        prefix = (", " if parent.num_written else "") + key
        parent.num_written += live
        self._stack.append(_Node(name, schema, schema.types(), live, prefix))

    def _make_container(self, node: _Node, first_child: str) -> None:
        node.kind = node.schema.container() or ("array" if first_child == "item" else "object")
        if node.in_quotes:
            self._write('"')
            node.live, node.stale = False, True
        elif node.prefix is not None:
            node.prefix += "[" if node.kind == "array" else "{"

    def text(self, text: str) -> None:
        """More text of the open element."""
        node = self._stack[-1]
        node.text.append(text)
        if not node.live or node.kind is not None or node.types != STRING:
            return
        if not node.in_quotes:
            # Blank text may be the space before a first child element.
            if not text or text.isspace():
                return
            text = "".join(node.text)
            self._flush_prefixes()
            self._write('"')
            node.in_quotes = True
        self._write(quoted(text)[1:-1])

    def close(self) -> None:
        """End the open element."""
        node = self._stack[-1]
        value = self._value(node)
        if node.live:
            self._flush_prefixes()
            if node.kind is not None:
                self._write_end(node)
            else:
                self._write('"' if node.in_quotes else value)
        self._stack.pop()
        parent = self._stack[-1]
        parent.children.append((node.name, value))
        parent.names.add(node.name)
        if node.stale:
            if parent.kind == "array":
                parent.stale = True
            else:
                parent.rewrite[node.name] = None

    def finish(self) -> tuple[str, bool]:
        """End of the call: its arguments and whether they are complete. An element still open is left out."""
        root = self._stack[0]
        complete = len(self._stack) == 1
        if complete or self._stack[1].prefix is not None:
            if root.prefix is not None:
                self._write(root.prefix)
            self._write_end(root)
        return self._value(root), complete

    def _flush_prefixes(self) -> None:
        for node in self._stack:
            if node.prefix is not None:
                self._write(node.prefix)
                node.prefix = None

    def _write_end(self, node: _Node) -> None:
        """The rest of a container whose children are written."""
        members = self._members(node)
        extra = [name for name in members if name in node.rewrite]
        rest = self._loose_text(node)
        if node.kind == "object" and rest is not None:
            extra.append(next(reversed(members)))
        for name in extra:
            self._write((", " if node.num_written else "") + f"{quoted(name)}: {members[name]}")
            node.num_written += 1
        if node.kind == "array" and rest is not None:
            self._write(", " + rest)
        self._write("]" if node.kind == "array" else "}")

    def _value(self, node: _Node) -> str:
        """Final JSON text of a node."""
        if node.kind == "object":
            return (
                "{"
                + ", ".join(f"{quoted(name)}: {value}" for name, value in self._members(node).items())
                + "}"
            )
        if node.kind == "array":
            rest = self._loose_text(node)
            values = [value for _, value in node.children] + ([] if rest is None else [rest])
            return "[" + ", ".join(values) + "]"
        text = "".join(node.text)
        if self._nested and not text.strip() and "string" not in node.types:
            for kind, empty in (("array", "[]"), ("object", "{}")):
                if kind in node.types:
                    return empty
        return to_json(text, node.types)

    def _members(self, node: _Node) -> dict[str, str]:
        """Members of an object, each name once, at its first place."""
        found: dict[str, list[str]] = {}
        for name, value in node.children:
            found.setdefault(name, []).append(value)
        members = {
            name: values[-1] if len(values) == 1 or not self._nested else "[" + ", ".join(values) + "]"
            for name, values in found.items()
        }
        rest = self._loose_text(node)
        if rest is not None:
            name = "$text"
            while name in members:
                name = "$" + name
            members[name] = rest
        return members

    def _loose_text(self, node: _Node) -> str | None:
        """Text between the children of a container as JSON; null if blank."""
        text = "".join(node.text)
        if not text.strip():
            return None
        return (
            to_json(text, node.schema.item(len(node.children)).types())
            if node.kind == "array"
            else quoted(text)
        )
