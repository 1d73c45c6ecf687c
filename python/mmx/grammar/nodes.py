"""What a schema allows, in the form that both notations (JSON, elements of M3) are written from.

Every ``Node`` tells ``least``: characters that its value needs at least, roughly; and ``closing``: those that
may still be needed once a part of it is written, if nothing optional is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

MAX_ITEMS = 1000
"""Items of an array and members of a map whose schema sets no limit."""
MAX_PATTERN = 256
"""Characters of a string with a pattern whose schema sets no limit: at its limit it turns to what the pattern
still needs."""
_NUMBER_COST = 34


def tag_cost(name: str) -> int:
    """Characters around a member in the longer of the notations."""
    return 2 * len(name) + 12


@dataclass(eq=False)
class Text:
    """A string; ``terms`` are terminals that it has to match. ``longest`` None: only the answer's limit
    ends it (a count would cost the matcher a state for each character)."""

    shortest: int = 0
    longest: int | None = None
    terms: tuple[str, ...] = ()

    def count(self, least: int = 0) -> str:
        """Repetition of a character, at least ``least`` times."""
        least = max(self.shortest, least)
        if self.longest is None:
            return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
        return f"{{{least},{max(self.longest, least)}}}"

    @cached_property
    def least(self) -> int:
        longest = MAX_PATTERN if self.longest is None else min(self.longest, MAX_PATTERN)
        return max(self.shortest, longest if self.terms else 0) + 2

    @cached_property
    def closing(self) -> int:
        return self.least


@dataclass(eq=False)
class Number:
    """A number that matches the terminal ``term``."""

    term: str
    least = closing = _NUMBER_COST


@dataclass(eq=False)
class Choice:
    """One of some JSON values."""

    values: list[Any]

    @cached_property
    def least(self) -> int:
        return max(len(str(value)) for value in self.values) + 4

    @cached_property
    def closing(self) -> int:
        return self.least


@dataclass(eq=False)
class Array:
    """``first``: nodes of the leading items; ``rest``: of all further ones, None if there are none."""

    first: list[Node]
    rest: Node | None
    shortest: int
    longest: int

    def item(self, index: int) -> Node:
        """The node of an item, which must be allowed."""
        node = self.first[index] if index < len(self.first) else self.rest
        assert node is not None
        return node

    @cached_property
    def least(self) -> int:
        return sum(self.item(i).least + tag_cost("item") for i in range(min(self.shortest, 64))) + 2

    @cached_property
    def closing(self) -> int:
        nodes = [*self.first, *([self.rest] if self.rest is not None else [])]
        return max((node.closing for node in nodes), default=0) + self.least + tag_cost("item")


@dataclass(frozen=True)
class Member:
    """A declared member of an object."""

    name: str
    node: Node
    required: bool


@dataclass(frozen=True)
class KeyedBy:
    """Members whose name matches the terminal ``term``, which comes from the pattern or name ``source``, and
    no other pattern of the object; ``node`` is None where there may be none."""

    source: str
    term: str
    node: Node | None


@dataclass(eq=False)
class Object:
    """``members`` in their order, then up to ``longest`` (at least ``shortest``) others: ``patterns`` by
    name, ``rest`` with any other name."""

    members: list[Member]
    patterns: list[KeyedBy]
    rest: Node | None
    shortest: int
    longest: int

    @property
    def open(self) -> bool:
        """Whether members may stand in it that are not declared."""
        return self.longest > 0 and bool(self._others())

    def others(self) -> list[tuple[list[str], Node, KeyedBy | None]]:
        """Undeclared members: the terminals that their names match all, and the pattern among these."""
        terms = [keyed.term for keyed in self.patterns]
        found: list[tuple[list[str], Node, KeyedBy | None]] = []
        for keyed in self.patterns:
            if keyed.node is not None:
                others = [f"~{term}" for term in terms if term != keyed.term]
                found.append(([keyed.term, *others], keyed.node, keyed))
        if self.rest is not None:
            found.append(([f"~{term}" for term in terms], self.rest, None))
        return found

    def _others(self) -> list[Node]:
        return [node for _, node, _ in self.others()]

    @cached_property
    def least(self) -> int:
        others = max((node.least for node in self._others()), default=0) + tag_cost("x" * 16)
        required = sum(m.node.least + tag_cost(m.name) for m in self.members if m.required)
        return required + min(self.shortest, 64) * others + 2

    @cached_property
    def closing(self) -> int:
        own = [m.node.closing + tag_cost(m.name) for m in self.members]
        own += [node.closing + tag_cost("x" * 64) for node in self._others()]
        return max(own, default=0) + self.least


@dataclass(eq=False)
class Union:
    """A value of any of the branches."""

    branches: list[Node]

    @cached_property
    def least(self) -> int:
        return max(node.least for node in self.branches)

    @cached_property
    def closing(self) -> int:
        return max(node.closing for node in self.branches)


@dataclass(eq=False)
class Anything:
    """Any value, nested at most ``depth`` deep."""

    depth: int
    below: Callable[[], Anything]
    least = 4

    @property
    def inner(self) -> Anything | None:
        """What may stand inside a container; None at the greatest depth."""
        return self.below() if self.depth > 0 else None

    @property
    def closing(self) -> int:
        return 40 + 6 * self.depth


Node: TypeAlias = Text | Number | Choice | Array | Object | Union | Anything
