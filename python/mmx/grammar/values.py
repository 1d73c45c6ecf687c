"""How the parser reads the text of a parameter, as far as the writers of calls have to know."""

from __future__ import annotations

import json
from typing import Any

from mmx.parsers.schema import TypeSet, to_json

_READINGS = {
    "null": "/(?i:null)/",
    "integer": "/\\s*[+-]?[0-9]+\\s*/",
    "number": "/\\s*[+-]?([0-9]+\\.?[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?\\s*/",
    "boolean": "/\\s*((?i:true|false)|0|1)\\s*/",
    "object": "/\\s*[\\[{](?s:.*)/",
    "array": "/\\s*[\\[{](?s:.*)/",
}


def other_readings(types: TypeSet) -> list[str]:
    """Terminals of the texts that are no strings where a value may have any of ``types``."""
    return sorted({_READINGS[kind] for kind in types if kind != "string"})


def means(text: str, types: TypeSet, value: Any, *, nested: bool) -> bool:
    """Whether the parser reads ``text`` as ``value``. ``nested``: by the rules of M3."""
    if nested and not text.strip() and "string" not in types:
        for kind, empty in (("array", []), ("object", {})):
            if kind in types:
                return bool(value == empty)
    read = json.loads(to_json(text, types))
    return bool(read == value and isinstance(read, bool) == isinstance(value, bool))
