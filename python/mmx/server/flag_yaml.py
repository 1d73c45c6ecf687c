"""Reads settings from a YAML file, with the place of each for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Settings that come with the package, by the name under which ``--config`` finds them."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> str | None:
    """The file of a preset; None if ``name`` is not one, or if a file of that name exists here."""
    return str(PRESETS / f"{name}.yaml") if name in preset_names() and not Path(name).exists() else None


def yaml_value(flag: Flag, value: Any, where: str) -> Any:
    """``value`` as YAML typed it, checked against the flag; ``where`` opens the error sentence."""
    if isinstance(value, str):
        return parse_value(flag, value, where, EXIT_CONFIG)
    fits = isinstance(value, flag.kind.yaml_types) and isinstance(value, bool) == (flag.kind is BOOL)
    if not fits:
        raise FlagError(f"{where}: expected {flag.kind.name}, got {value!r}", EXIT_CONFIG)
    return value if flag.kind is JSON else parse_value(flag, str(value), where, EXIT_CONFIG)


def yaml_leaves(
    path: str, paths: Mapping[str, Flag], names: Mapping[str, tuple[Flag, bool]]
) -> list[tuple[str, Any, yaml.Mark]]:
    """(dotted key, value, mark) of every setting; mappings are entered unless a JSON flag takes them."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except OSError as exc:
        hint = did_you_mean(nearest(path, preset_names()))
        raise FlagError(f"configuration file {path!r}: {exc.strerror}{hint}", EXIT_CONFIG) from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise FlagError(f"{where}: not valid YAML ({getattr(exc, 'problem', exc)})", EXIT_CONFIG) from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise FlagError(f"{path}: expected one mapping of settings", EXIT_CONFIG)
    leaves: list[tuple[str, Any, yaml.Mark]] = []

    def place(node: yaml.Node) -> str:
        return f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def check_inside(node: yaml.Node, flag: Flag | None, name: str) -> None:
        """Keys of a mapping that is taken whole."""
        if not isinstance(node, yaml.MappingNode):
            return
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in seen:
                raise FlagError(f"{place(key_node)}: key '{name}.{key}' is given twice", EXIT_CONFIG)
            seen.add(key)
            if flag is not None:
                check_keys(flag, {key: None}, place(key_node))
            check_inside(value_node, None, f"{name}.{key}")

    def visit(node: yaml.MappingNode, prefix: str) -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise FlagError(f"{place(key_node)}: a key must be plain text", EXIT_CONFIG)
            key = prefix + key_node.value
            if normal(key) in seen:
                raise FlagError(f"{place(key_node)}: key {key!r} is given twice", EXIT_CONFIG)
            seen.add(normal(key))
            known = names.get(normal(key))
            whole = known is not None and known[0].kind is JSON
            nested = not whole and any(dotted.startswith(key + ".") for dotted in paths)
            if isinstance(value_node, yaml.MappingNode) and nested:
                visit(value_node, key + ".")
                continue
            if whole and known is not None:
                check_inside(value_node, known[0], key)
            leaves.append((key, loader.construct_object(value_node, deep=True), key_node.start_mark))

    visit(root, "")
    return leaves
