"""Turns command line, environment and YAML into values, driven by a table of ``Flag``s.

Hyphen and underscore are the same. Precedence: command line, environment, YAML file, preset, default. A
value that was refused names the flag, what was expected and the nearest known spelling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmx.server.flag_kinds import (
    BOOL,
    EXIT_CONFIG,
    JSON,
    Flag,
    FlagError,
    check_keys,
    did_you_mean,
    nearest,
    normal,
    parse_value,
)
from mmx.server.flag_yaml import preset_file, yaml_leaves, yaml_value


@dataclass
class Parsed:
    """Values by flag name, where each came from, and what deserves a line in the start log."""

    values: dict[str, Any]
    origins: dict[str, str]
    warnings: list[str] = field(default_factory=list)


class FlagTable:
    """All flags of a program with every spelling resolved once."""

    def __init__(self, flags: Sequence[Flag], positional: str) -> None:
        self.flags = {flag.name: flag for flag in flags}
        self.positional = positional
        self.names: dict[str, tuple[Flag, bool]] = {}
        self.short = {name: flag for flag in flags for name in flag.short}
        self.nulls = {key: flag for flag in flags for key in flag.yaml_null}
        for flag in flags:
            spellings = [(name, False) for name in (flag.name, *flag.aliases)]
            spellings += [(name, True) for name in flag.negations]
            if flag.kind is BOOL:
                spellings += [("no_" + name, not negated) for name, negated in spellings]
            for name, negated in spellings:
                if normal(name) in self.names:
                    raise ValueError(f"flag spelling {name!r} is in the table twice")
                self.names[normal(name)] = (flag, negated)
        self.paths = {path: flag for flag in flags for path in flag.yaml}

    def parse(self, argv: Sequence[str], environ: Mapping[str, str], config_flags: Sequence[str]) -> Parsed:
        """Merge all sources; ``config_flags`` name the YAML files, the one that wins first. A preset gives
        way to every file, wherever it is named."""
        warnings: list[str] = []
        line = self._command_line(argv, warnings)
        env = self._environment(environ)
        paths = [line.get(flag, env.get(flag, ("", "")))[0] for flag in config_flags]
        presets = [preset_file(path) for path in paths]
        file: dict[str, tuple[Any, str]] = {}
        for path, preset in sorted(zip(paths, presets, strict=True), key=lambda pair: pair[1] is not None):
            if path:
                origin = f"preset {path}" if preset else f"file {path}"
                file = {**self._yaml_file(preset or path, origin), **file}
        values, origins = {}, {}
        for name, flag in self.flags.items():
            values[name], origins[name] = flag.default, "default"
            for source in (line, env, file):
                if name in source:
                    values[name], origins[name] = source[name]
                    break
            if name in line and name in file and line[name][0] != file[name][0]:
                kind, _, where = file[name][1].partition(" ")
                if kind == "file":
                    warnings.append(f"{flag.spelling} on the command line overrides {name} in {where}")
        self._judge(values, origins, warnings)
        return Parsed(values, origins, warnings)

    def _judge(self, values: dict[str, Any], origins: dict[str, str], warnings: list[str]) -> None:
        """Refuse what would change what the user gets, in one sentence for all of it; note the rest."""
        refused = []
        for name, flag in self.flags.items():
            value, origin = values[name], origins[name]
            if origin == "default":
                continue
            check_keys(flag, value, f"{flag.spelling} ({origin})")
            reason = flag.refuse(value) if flag.refuse else None
            note = flag.note(value) if flag.note else None
            if reason is not None:
                shown = json.dumps(value) if flag.kind in (JSON, BOOL) else value
                refused.append(f"{flag.spelling} {shown} ({origin}): {reason}")
            elif note is not None:
                warnings.append(f"{flag.spelling} has no effect here: {note}")
            elif flag.target is None and flag.note is None and flag.refuse is None:
                warnings.append(f"{flag.spelling} is accepted and has no effect here")
        if refused:
            raise FlagError("refused: " + "; ".join(refused), EXIT_CONFIG)

    def _lookup(self, token: str) -> tuple[Flag, bool, str]:
        """Flag, negated, and the dotted rest of a JSON flag for one spelling on the command line."""
        head, _, rest = token.lstrip("-").partition(".")
        if token.startswith("--"):
            known = self.names.get(normal(head))
        else:
            known = (self.short[head], False) if head in self.short else None
        if known is None or (rest and known[0].kind is not JSON):
            hint = nearest(normal(head), list(self.names))
            shown = "--" + hint.replace("_", "-") if hint else None
            raise FlagError(f"unknown flag {token!r}" + did_you_mean(shown))
        return known[0], known[1], rest

    def _command_line(self, argv: Sequence[str], warnings: list[str]) -> dict[str, tuple[Any, str]]:
        values: dict[str, tuple[Any, str]] = {}
        rest = list(argv)

        def store(flag: Flag, value: Any) -> None:
            if flag.name in values and values[flag.name][0] != value:
                warnings.append(f"{flag.spelling} is given twice; the last one is used")
            values[flag.name] = (value, "flag")

        while rest:
            token = rest.pop(0)
            if not _looks_like_flag(token):
                if self.positional in values:
                    raise FlagError(f"unexpected argument {token!r}: one model is expected")
                store(self.flags[self.positional], token)
                continue
            spelled, has_value, text = token.partition("=")
            flag, negated, part = self._lookup(spelled)
            if flag.kind is BOOL:
                if not has_value:
                    text = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
                store(flag, parse_value(flag, text, spelled) is not negated)
                continue
            texts = [text] if has_value else []
            while not has_value and rest and not _looks_like_flag(rest[0]) and (flag.many or not texts):
                texts.append(rest.pop(0))
            if not texts:
                raise FlagError(f"{spelled}: expected a value")
            if part:
                merged = _deep_set(values.get(flag.name, ({}, ""))[0], part.split("."), _loose_json(texts[0]))
                values[flag.name] = (merged, "flag")
            elif flag.many:
                store(flag, tuple(parse_value(flag, text, spelled) for text in texts))
            else:
                store(flag, parse_value(flag, texts[0], spelled))
        return values

    def _environment(self, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
        values: dict[str, tuple[Any, str]] = {}
        for name, flag in self.flags.items():
            for variable in ("MMX_" + name.upper(), *flag.env):
                if variable in environ:
                    texts = environ[variable].split() if flag.many else [environ[variable]]
                    parsed = [parse_value(flag, text, variable, EXIT_CONFIG) for text in texts]
                    values[name] = (tuple(parsed) if flag.many else parsed[0], f"environment {variable}")
                    break
        return values

    def _yaml_file(self, path: str, origin: str) -> dict[str, tuple[Any, str]]:
        values: dict[str, tuple[Any, str]] = {}
        for key, value, mark in yaml_leaves(path, self.paths, self.names):
            where = f"{path}:{mark.line + 1}:{mark.column + 1}"
            flag, negated = (
                (self.paths[key], False) if key in self.paths else self.names.get(normal(key), (None, False))
            )
            if key in self.nulls and value is None:
                flag, value = self.nulls[key], True
            if flag is None and any(dotted.startswith(key + ".") for dotted in self.paths):
                if value is None:
                    continue
                raise FlagError(f"{where}: {key!r} must be a mapping, got {value!r}", EXIT_CONFIG)
            if flag is None:
                hint = nearest(key, [*self.names, *self.paths])
                raise FlagError(f"{where}: unknown key {key!r}" + did_you_mean(hint), EXIT_CONFIG)
            if flag.name in values:
                raise FlagError(f"{where}: {key!r} sets {flag.name} a second time", EXIT_CONFIG)
            if value is None:
                continue
            items = value if flag.many and isinstance(value, list) else [value]
            parsed = [yaml_value(flag, item, f"{where}: {key}") for item in items]
            result = tuple(parsed) if flag.many else parsed[0]
            values[flag.name] = (not result if negated else result, origin)
        return values


def _looks_like_flag(token: str) -> bool:
    return token.startswith("-") and len(token) > 1 and not token[1].isdigit()


def _loose_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _deep_set(base: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    inner = base.get(head) if isinstance(base.get(head), dict) else {}
    return {**base, head: _deep_set(inner or {}, rest, value) if rest else value}
