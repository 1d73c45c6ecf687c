"""What one setting is: its spellings, its type and how text becomes a value of it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import fields

from mmx.config import EngineConfig, ParallelConfig
from mmx.launch import LaunchFlags

EXIT_USAGE = 2
EXIT_CONFIG = 3
_GROUPS: dict[str, type[Struct]] = {"engine": EngineConfig, "parallel": ParallelConfig, "launch": LaunchFlags}


class FlagError(ValueError):
    """A setting was refused; ``exit_code`` is what the process should end with."""

    def __init__(self, message: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Kind:
    """How a value is written: ``parse`` reads text, ``check`` a value that YAML already typed."""

    name: str
    parse: Callable[[str], Any]
    yaml_types: tuple[type, ...]


@dataclass(frozen=True)
class Flag:
    """One setting. ``target`` is ``group.field`` in ``ServerConfig``; None = accepted without effect.

    ``aliases`` are other programs' spellings, ``short`` those with one hyphen, ``negations`` spellings that
    mean the opposite of a boolean, ``env`` further variables beside ``MMX_<NAME>``, ``yaml`` dotted paths
    beside the names, ``yaml_null`` keys whose ``null`` turns a boolean on, ``keys`` those that a JSON value
    may have (none = any). ``refuse`` says why a value can not be accepted, ``note`` what the start log
    should say about one that was given; both return None when there is nothing to say.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    target: str | None
    section: str = ""
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    yaml: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    many: bool = False
    short: tuple[str, ...] = ()
    yaml_null: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    refuse: Callable[[Any], str | None] | None = None
    note: Callable[[Any], str | None] | None = None

    @property
    def spelling(self) -> str:
        return "--" + self.name.replace("_", "-")


def row(name: str, kind: Kind, default: Any, target: str | None, help: str, **more: Any) -> Flag:
    """One line of the table, in the order in which it reads best; ``target`` without a dot: the field of the
    flag's name in that group."""
    if target is not None and "." not in target:
        target = f"{target}.{name}"
    return Flag(name=name, kind=kind, default=default, help=help, target=target, **more)


def field(name: str, kind: Kind, target: str, help: str, **more: Any) -> Flag:
    """A line for a field whose default stands in its structure."""
    group, _, attribute = target.partition(".")
    default = next(f.default for f in fields(_GROUPS[group]) if f.name == (attribute or name))
    return row(name, kind, default, target, help, **more)


def inert(name: str, kind: Kind, default: Any, why: str, **more: Any) -> Flag:
    """A line for what other programs have and mmx does not need: ``why``, which the start log says too."""
    return row(name, kind, default, None, f"accepted; {why}", note=always(why), **more)


def always(sentence: str) -> Callable[[Any], str | None]:
    """The same sentence whatever the value is."""
    return lambda value: sentence


def normal(name: str) -> str:
    """The one spelling under which a flag is looked up."""
    return name.lstrip("-").replace("-", "_")


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("true", "false", "1", "0"):
        raise ValueError("true or false")
    return lowered in ("true", "1")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("an integer") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("a finite number")
    return value


def _size(text: str) -> int:
    """Integers with an optional binary suffix: 128k = 131072, 1M = 1048576."""
    scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower())
    try:
        value = float(text[:-1]) * scale if scale else int(text)
    except ValueError:
        raise ValueError("an integer, or one with suffix k, M or G (powers of 1024)") from None
    if value != value or value != int(value):
        raise ValueError("an integer, or one with suffix k, M or G (powers of 1024)")
    return int(value)


def _json(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as exc:
            raise ValueError(f"a readable file after @ ({exc.strerror})") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"a JSON object ({exc.msg} at character {exc.pos})") from None
    if not isinstance(value, dict):
        raise ValueError("a JSON object")
    return value


TEXT = Kind("text", str, (str, int, float))
BOOL = Kind("bool", _boolean, (bool,))
INT = Kind("int", _integer, (int,))
FLOAT = Kind("number", _number, (int, float))
SIZE = Kind("size", _size, (int, str))
JSON = Kind("json", _json, (dict,))


def parse_value(flag: Flag, text: str, source: str, exit_code: int = EXIT_USAGE) -> Any:
    """``text`` as the flag's type; ``source`` is how the user wrote it and opens the error sentence."""
    try:
        value = flag.kind.parse(text)
    except ValueError as exc:
        raise FlagError(f"{source}: expected {exc}, got {text!r}", exit_code) from None
    if flag.choices and value not in flag.choices:
        hint = nearest(str(value), flag.choices)
        raise FlagError(
            f"{source}: expected one of {', '.join(flag.choices)}, got {text!r}" + did_you_mean(hint),
            exit_code,
        )
    return value


def check_keys(flag: Flag, value: Any, source: str) -> None:
    """FlagError if a JSON value has a key that the flag does not know."""
    for key in value if flag.keys and isinstance(value, dict) else ():
        if key not in flag.keys:
            hint = did_you_mean(nearest(key, flag.keys))
            raise FlagError(f"{source}: unknown key {key!r} in {flag.name}{hint}", EXIT_CONFIG)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known spelling that ``name`` may have been meant to be."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(hint: str | None) -> str:
    """The end of an error sentence."""
    return f"; did you mean {hint}?" if hint else ""
