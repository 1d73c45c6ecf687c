"""Text of an argument -> JSON value, by schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmx.parsers.schema import Schema, to_json


def convert(text: str, schema: Any, root: Any = None) -> Any:
    return json.loads(to_json(text, Schema(schema, root or schema).types()))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, ' a\n"\\', ' a\n"\\'),
        ({"type": "integer"}, " 007 ", 7),
        ({"type": "integer"}, "+5", 5),
        ({"type": "integer"}, "-0", 0),
        ({"type": "integer"}, "7.5", 7.5),
        ({"type": "integer"}, "7.0", 7.0),
        ({"type": "integer"}, "abc", "abc"),
        ({"type": "integer"}, "null", None),
        ({"type": "integer"}, "1_000", "1_000"),
        ({"type": "integer"}, "٣", "٣"),
        ({"type": "integer"}, '{"a": 1}', {"a": 1}),
        ({"type": "integer"}, "", ""),
        ({"type": "number"}, "5.0", 5),
        ({"type": "number"}, "1e3", 1000),
        ({"type": "number"}, ".5", 0.5),
        ({"type": "number"}, "1.50", 1.5),
        ({"type": "number"}, "12345678901234567890.0", 12345678901234567890),
        ({"type": "number"}, "1e-999", 0),
        ({"type": "number"}, "inf", "inf"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "boolean"}, " TRUE", True),
        ({"type": "boolean"}, "0", False),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "null"}, "NULL", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "nil", "nil"),
        ({"type": "array"}, " [1, {}] ", [1, {}]),
        ({"type": "array"}, '{"a": 1}', {"a": 1}),
        ({"type": "array"}, "['a']", "['a']"),
        ({"type": "array"}, "[1e999]", "[1e999]"),
        ({"type": "array"}, "[NaN]", "[NaN]"),
        ({"type": "object"}, "5", 5),
        ({"type": "object"}, "[" * 100_000, "[" * 100_000),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "42", 42),
        ({"oneOf": [{"type": "string"}, {"allOf": [{"type": "boolean"}]}]}, "true", True),
        ({"enum": [1, 2, "auto"]}, "2", 2),
        ({"enum": [1, 2, "auto"]}, "auto", "auto"),
        ({"enum": [True, None]}, "null", None),
        ({"enum": [True, 1.5, [1], {}]}, "1.5", 1.5),
        ({}, "42", "42"),
        (True, "42", "42"),
        ({"const": 42}, "42", 42),
        ({"type": "int64"}, "42", 42),
        ({"type": "uint"}, "42", 42),
        ({"type": "Float32"}, "0.5", 0.5),
        ({"type": "dict"}, "{}", {}),
        ({"type": "list"}, "[]", []),
        ({"type": "varchar"}, "42", "42"),
        ({"type": "no such type"}, "42", "42"),
        ({"type": 5, "enum": "x", "anyOf": {}}, "42", "42"),
    ],
)
def test_conversion(schema: Any, text: str, value: Any) -> None:
    result = convert(text, schema)
    assert result == value
    assert type(result) is type(value) or {type(result), type(value)} == {int, float}


def test_all_digits_are_kept() -> None:
    digits = "9" * 6000
    assert to_json(digits, frozenset({"integer"})) == digits
    assert to_json(f"[{digits}]", frozenset({"array"})) == f"[{digits}]"
    assert to_json("9007199254740993", frozenset({"number"})) == "9007199254740993"


def test_references() -> None:
    root = {
        "$defs": {"id/x": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}},
        "properties": {"p": {"oneOf": [{"type": "boolean"}]}},
    }
    assert convert("7", {"$ref": "#/$defs/id~1x"}, root) == 7
    assert convert("true", {"$ref": "#/properties/p/oneOf/0"}, root) is True
    for reference in ("#/$defs/loop", "#/nowhere", "#/properties/p/oneOf/9", "http://elsewhere", 5):
        assert convert("7", {"$ref": reference}, root) == "7"


def test_recursive_unions_end() -> None:
    node: dict[str, Any] = {"type": "null"}
    node["anyOf"] = [{"$ref": "#"}, {"type": "integer"}, {"anyOf": [{"$ref": "#"}] * 50}] * 50
    schema = Schema(node, node)
    assert schema.types() == {"null", "integer"}
    assert schema.container() is None
    assert schema.member("a").types() == {"string"}
    assert schema.item(0).types() == {"string"}


def test_containers_and_members() -> None:
    def schema(node: Any) -> Schema:
        return Schema(node, node)

    assert schema({"type": ["null", "array"]}).container() == "array"
    assert schema({"items": {}}).container() == "array"
    assert schema({"properties": {}}).container() == "object"
    assert schema({"additionalProperties": {"type": "integer"}}).container() == "object"
    assert schema({"anyOf": [{"type": "string"}, {"type": "object"}]}).container() == "object"
    assert schema({"type": "string"}).container() is None

    mapping = schema({"properties": {"a": {"type": "boolean"}}, "additionalProperties": {"type": "integer"}})
    assert mapping.member("a").types() == {"boolean"}
    assert mapping.member("b").types() == {"integer"}
    assert mapping.member("b", additional=False).types() == {"string"}
    assert schema({"oneOf": [{"properties": {"a": {"type": "null"}}}]}).member("a").types() == {"null"}
    pair = schema({"prefixItems": [{"type": "null"}], "items": {"type": "integer"}})
    assert [pair.item(i).types() for i in (0, 1)] == [{"null"}, {"integer"}]
