"""Reads settings from a YAML file, with the place of each for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmx.server.flag_kinds import BOOL, EXIT_CONFIG, JSON, Flag, FlagError, normal, parse_value


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
        raise FlagError(f"configuration file {path!r}: {exc.strerror}", EXIT_CONFIG) from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise FlagError(f"{where}: not valid YAML ({getattr(exc, 'problem', exc)})", EXIT_CONFIG) from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise FlagError(f"{path}: expected one mapping of settings", EXIT_CONFIG)
    leaves: list[tuple[str, Any, yaml.Mark]] = []

    def visit(node: yaml.MappingNode, prefix: str) -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            where = f"{path}:{mark.line + 1}:{mark.column + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise FlagError(f"{where}: a key must be plain text", EXIT_CONFIG)
            key = prefix + key_node.value
            if normal(key) in seen:
                raise FlagError(f"{where}: key {key!r} is given twice", EXIT_CONFIG)
            seen.add(normal(key))
            known = names.get(normal(key))
            whole = known is not None and known[0].kind is JSON
            if isinstance(value_node, yaml.MappingNode) and not whole and key not in paths:
                if not any(dotted.startswith(key + ".") for dotted in paths):
                    leaves.append((key, None, mark))
                else:
                    visit(value_node, key + ".")
            else:
                leaves.append((key, loader.construct_object(value_node, deep=True), mark))

    visit(root, "")
    return leaves
