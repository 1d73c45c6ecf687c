"""What single keywords let through and keep out, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grammar.helpers import model
from mmx.grammar import Document, SchemaError, build
from mmx.grammar.errors import time_limit
from mmx.grammar.sequence import compile_grammar


def accepts(kind: str, value: Any, text: str) -> bool:
    """Whether the grammar of a document lets ``text`` through, whole."""
    vocabulary = model("m3").vocabulary
    matcher = compile_grammar(vocabulary, build(Document(kind, value, "schema"), None).grammar)
    ids = [vocabulary.id_of[bytes([byte])] for byte in text.encode()]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def valid(schema: Any, value: Any) -> bool:
    text = value if isinstance(value, str) else json.dumps(value)
    return accepts("json_schema", schema, text)


LIMITS = [
    {"minimum": 3, "maximum": 77},
    {"minimum": -12, "maximum": 5},
    {"exclusiveMinimum": -1, "exclusiveMaximum": 10},
    {"exclusiveMinimum": -2.5, "exclusiveMaximum": 2.5, "minimum": -2},
    {"minimum": 100},
    {"maximum": -7},
    {"minimum": 1.5, "maximum": 10.25},
    {"exclusiveMinimum": 0},
    {"minimum": -0.75, "exclusiveMaximum": 0.5},
]


def within(value: float, limits: dict[str, float]) -> bool:
    return (
        limits.get("minimum", value) <= value <= limits.get("maximum", value)
        and value > limits.get("exclusiveMinimum", value - 1)
        and value < limits.get("exclusiveMaximum", value + 1)
    )


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_limits_of_integers_are_exact(limits: dict[str, float]) -> None:
    for value in [*range(-25, 25), -101, -100, 75, 76, 77, 78, 99, 100, 101, 1000, 12345]:
        assert valid({"type": "integer", **limits}, value) == within(value, limits), value


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_limits_of_numbers_are_exact(limits: dict[str, float]) -> None:
    texts = (
        "0 -0 0.0 1 1.4 1.5 1.50 1.51 9.99 10 10.0 10.2 10.25 10.250 10.251 -0.75 -0.76 -0.7 0.49 0.5 0.50"
    )
    for text in (*texts.split(), "-1", "-1.0", "-0.999", "77.0", "77.001", "100.5", "-7", "-6.9", "-7.1"):
        assert valid({"type": "number", **limits}, text) == within(float(text), limits), text


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "maxLength": 2}, ['"ab"', '"é€"', '""'], ['"abc"', "ab"]),
        ({"type": "string", "minLength": 2}, ['"ab"', '"a\\nb"'], ['"a"', '"\\n"']),
        ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['""', '"ab"', '"ba"']),
        ({"type": "string", "pattern": "b|^c"}, ['"abc"', '"cd"'], ['"ac"', '"a"']),
        ({"type": "string", "pattern": "^a\\$"}, ['"a$b"'], ['"a"']),
        ({"anyOf": [{"pattern": '^"', "type": "string"}, {"type": "null"}]}, ["null"], ['"a"', '"\\""']),
        ({"type": "string", "pattern": "^\\d{2}-[A-F]*?$"}, ['"12-"', '"12-AF"'], ['"1-A"', '"12-G"']),
        ({"format": "date"}, ['"2024-02-29"', '"2023-12-31"'], ['"2023-02-29"', '"2023-04-31"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
        ({"type": "string", "format": "ipv4"}, ['"10.0.255.1"'], ['"10.0.256.1"', '"1.2.3"']),
        ({"type": "string", "format": "colour"}, ['"any"'], ["1"]),
        ({"const": {"a": [1, None]}}, ['{"a": [1, null]}'], ['{"a": [1]}']),
        ({"enum": ["a", 1, True]}, ['"a"', "1", "true"], ['"b"', "2", "false"]),
        ({"type": ["integer", "null"]}, ["7", "null"], ["7.5", '"7"']),
        ({"items": {"type": "null"}, "minItems": 1, "maxItems": 2}, ["[null]"], ["[]", "[null, null, null]"]),
        ({"prefixItems": [{"type": "integer"}], "items": False}, ["[]", "[1]"], ["[1, 2]", '["a"]']),
        (
            {"properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
            ['{"a": 1, "b": null}', '{"b": null}', '{\n  "b": null\n}'],
            ['{"a": 1}', '{"b": null, "c": 1}', "{}"],
        ),
        (
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
            ['{"a": 1, "z": true}', '{"z": false}', "{}"],
            ['{"z": 1}', '{"a": true}'],
        ),
        (
            {"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False},
            ['{"n1": 1}', "{}"],
            ['{"m": 1}', '{"n1": "x"}'],
        ),
        ({"minProperties": 1, "maxProperties": 1}, ['{"k": 1}'], ["{}", '{"a": 1, "b": 2}']),
        ({"required": ["only named"]}, ['{"only named": 3}'], ["{}"]),
        ({"required": ["a", "a"]}, ['{"a": 3}'], ["{}"]),
        ({"maxProperties": 0}, ["{}"], ['{"a": 3}']),
        (
            {"properties": {"a": False, "b": {"enum": []}}, "additionalProperties": {}},
            ['{"c": 1}', "{}"],
            ['{"a": 1}', '{"b": 1}', '{"c": 1, "a": 1}'],
        ),
        ({"pattern": "b?$", "maxLength": 0}, ['""'], ['"b"']),
        ({"items": {"pattern": "b", "maxLength": 0}}, ["[]"], ['[""]']),
        ({"allOf": [{"minimum": 3, "type": "number"}, {"type": "integer"}]}, ["3"], ["2", "3.5"]),
        (
            {
                "allOf": [
                    {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"properties": {"b": {"type": "null"}}, "additionalProperties": {"minimum": 5}},
                ]
            },
            ['{"a": 5}', '{"a": 6, "b": null}'],
            ['{"a": 4}', '{"b": null}'],
        ),
        (
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
            ['{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'],
            ["{}"],
        ),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"x"'], ["1.5", "null"]),
        ({"enum": [1, 5, "a", "abc"], "minimum": 3, "minLength": 2}, ["5", '"abc"'], ["1", '"a"']),
        ({"enum": ["ab", "b", 2, 3], "pattern": "^a", "multipleOf": 2}, ['"ab"', "2"], ['"b"', "3"]),
        ({"enum": [10**30, 10**30 + 1, 0.3, 0.35], "multipleOf": 0.1}, [str(10**30), "0.3"], ["0.35"]),
        ({"enum": [10**30, 10**30 + 1], "multipleOf": 2}, [str(10**30)], [str(10**30 + 1)]),
        (
            {"enum": [{"a": 1}, {"a": "x"}, [1, 1], [1]], "properties": {"a": {"$ref": "#/$defs/n"}}}
            | {"uniqueItems": True, "$defs": {"n": {"type": "integer"}}},
            ['{"a": 1}', "[1]"],
            ['{"a": "x"}', "[1, 1]"],
        ),
        ({"allOf": [{"enum": [1, [1], "a"]}, {"enum": [True, [True], "a"]}]}, ['"a"'], ["1", "[1]", "true"]),
        ({"const": "a\x7fb"}, ['"a\x7fb"'], ['"ab"']),
        (
            {"properties": {"a": {"type": "integer", "minimum": 1.2, "maximum": 1.8}, "b": {"const": 1}}},
            ['{"b": 1}', "{}"],
            ['{"a": 1}'],
        ),
        (
            {"properties": {"ab": {"type": "integer"}}, "patternProperties": {"^a": {"minimum": 5}}}
            | {"required": ["ab", "a1"], "additionalProperties": False},
            ['{"ab": 5, "a1": 7}'],
            ['{"ab": 4, "a1": 7}', '{"ab": 5, "a1": 4}', '{"ab": 5}'],
        ),
        (
            {"patternProperties": {"a": {"type": "integer"}, "b": {"type": "null"}, "c": False}}
            | {"additionalProperties": {"const": 3}},
            ['{"a": 1, "b": null, "d": 3}'],
            ['{"ab": 1}', '{"ba": null}', '{"c": 3}', '{"ac": 1}'],
        ),
        (
            {
                "allOf": [
                    {"properties": {"a": {"type": "integer"}}, "additionalProperties": False},
                    {"patternProperties": {"^[ab]": {"minimum": 3}}},
                ]
            },
            ['{"a": 3}', "{}"],
            ['{"a": 2}', '{"b": 3}'],
        ),
        (
            {"allOf": [{"prefixItems": [{"type": "integer"}]}, {"items": {"minimum": 5, "type": "number"}}]},
            ["[5]", "[6, 5.5]"],
            ["[4]", "[5.5]", "[5, 4]"],
        ),
        ({"allOf": [{"prefixItems": [{}, {}]}, {"items": False}], "type": "array"}, ["[]"], ["[1]"]),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"type": ["null", "array"], "items": {"$ref": "#"}}}},
            ["null", "[[null], []]"],
            ["[1]", "1"],
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
def test_keywords(schema: Any, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert valid(schema, text), text
    for text in bad:
        assert not valid(schema, text), text


@pytest.mark.parametrize(
    ("schema", "path", "code"),
    [
        ({"not": {}}, "schema.not", "unsupported_schema"),
        ({"properties": {"a": {"if": {}}}}, "schema.properties.a.if", "unsupported_schema"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems", "unsupported_schema"),
        ({"type": "integer", "multipleOf": 5}, "schema.multipleOf", "unsupported_schema"),
        ({"items": {"contains": {}}}, "schema.items.contains", "unsupported_schema"),
        ({"propertyNames": {}}, "schema.propertyNames", "unsupported_schema"),
        ({"$ref": "other.json"}, "schema.$ref", "unsupported_schema"),
        ({"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor"}}}, "schema.$ref", "unsupported_schema"),
        ({"uniqueItems": "yes"}, "schema.uniqueItems", "invalid_schema"),
        ({"uniqueItems": True}, "schema.uniqueItems", "unsupported_schema"),
        ({"type": "integer", "multipleOf": True}, "schema.multipleOf", "invalid_schema"),
        ({"const": "a", "pattern": "^b"}, "schema", "unsupported_schema"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "schema", "unsupported_schema"),
        ({"$ref": "#/$defs/none"}, "schema.$ref", "unsupported_schema"),
        ({"type": "string", "pattern": "(?=a)"}, "schema.pattern", "unsupported_schema"),
        ({"type": "string", "pattern": "(a)\\1"}, "schema.pattern", "unsupported_schema"),
        ({"type": "string", "pattern": "a(^b)"}, "schema.pattern", "unsupported_schema"),
        ({"type": "string", "pattern": "[a"}, "schema.pattern", "invalid_schema"),
        ({"type": "string", "pattern": "^("}, "schema.pattern", "invalid_schema"),
        ({"type": "string", "pattern": "a)|(b"}, "schema.pattern", "invalid_schema"),
        ({"type": "string", "pattern": "b|*a"}, "schema.pattern", "invalid_schema"),
        ({"type": "string", "pattern": "(?i)a"}, "schema.pattern", "unsupported_schema"),
        ({"type": "string", "pattern": '^"a"$'}, "schema", "unsupported_schema"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "schema", "unsupported_schema"),
        ({"patternProperties": {"a{3,1}": {}}}, "schema.patternProperties.a{3,1}", "invalid_schema"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "schema.oneOf", "unsupported_schema"),
        ({"anyOf": []}, "schema.anyOf", "invalid_schema"),
        ({"type": "decimal"}, "schema.type", "invalid_schema"),
        ({"minLength": -1}, "schema.minLength", "invalid_schema"),
        ({"properties": [1]}, "schema.properties", "invalid_schema"),
        ({"required": [{}]}, "schema.required", "invalid_schema"),
        ({"format": ["date"]}, "schema.format", "invalid_schema"),
        ({"pattern": None}, "schema.pattern", "invalid_schema"),
        ({"minimum": 1, "allOf": [{"minimum": "2"}]}, "schema.allOf[0].minimum", "invalid_schema"),
        ({"minimum": 3, "maximum": 2}, "schema", "unsupported_schema"),
        (False, "schema", "unsupported_schema"),
        ({"$ref": "#"}, "schema", "unsupported_schema"),
    ],
)
def test_refusals_name_the_place(schema: Any, path: str, code: str) -> None:
    with pytest.raises(SchemaError) as caught:
        build(Document("json_schema", schema, "schema"), None)
    assert (caught.value.path, caught.value.code) == (path, code)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_schema_that_explodes_is_refused_in_time() -> None:
    schema: Any = {"type": "string", "maxLength": 3}
    for _ in range(8):
        schema = {"anyOf": [{**schema, "title": str(i)} for i in range(8)]}
    with pytest.raises(SchemaError) as caught:
        build(Document("json_schema", schema, "schema"), None)
    assert caught.value.code == "grammar_too_complex"


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        ("choice", ["a", "x" * 4001], "p"),
        ("json_schema", {"enum": ["x" * 4001]}, "p"),
        ("json_schema", {"properties": {"x" * 4001: {}}, "required": ["x" * 4001]}, "p"),
        ("json_schema", {"type": "string", "pattern": "x" * 4001}, "p.pattern"),
        ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}, "p"),
        ("regex", "x" * 4001, "p"),
        ("grammar", "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(5000)) + 'a5000: "x"', "p"),
        ("grammar", f'start: "{"x" * 100_000}"', "p"),
    ],
    ids=["choice", "enum", "name", "pattern", "members", "regex", "rules", "grammar"],
)
def test_what_would_stop_the_matcher_is_refused(kind: str, value: Any, path: str) -> None:
    """Masks inside long texts take seconds, chains of rules more stack than there is."""
    with pytest.raises(SchemaError) as caught:
        build(Document(kind, value, path if kind != "json_schema" else "p"), None)
    assert (caught.value.path, caught.value.code) == (path, "grammar_too_complex")


def test_branches_and_patterns_that_multiply_are_refused_at_once() -> None:
    numbers = [{"type": "integer", "minimum": i} for i in range(300)]
    for schema, words in (
        ({"allOf": [{"anyOf": numbers[:4]}] * 12}, "more than 256 branches"),
        ({"anyOf": numbers, "oneOf": numbers}, "more than 256 branches"),
        ({"type": "string", "allOf": [{"pattern": str(i)} for i in range(30)]}, "more than 12 patterns"),
    ):
        with pytest.raises(SchemaError, match=words):
            build(Document("json_schema", schema, "schema"), None)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "object", "properties": {f"a{i}": {}}} for i in range(5000)]},
        {"allOf": [{"enum": list(range(20_000))}, {"enum": list(range(20_000, 40_000))}]},
        {
            "properties": {f"a{i}": {} for i in range(500)},
            "patternProperties": {f"^a{i}": {"type": "integer"} for i in range(100)},
        },
    ],
    ids=["allOf", "enum", "patterns"],
)
def test_building_ends_at_its_time(schema: Any) -> None:
    with pytest.raises(SchemaError, match="takes too long") as caught, time_limit(0.05):
        build(Document("json_schema", schema, "schema"), None)
    assert caught.value.code == "grammar_too_complex"


def test_many_members_in_a_row_are_fine() -> None:
    names = [f"p{i}" for i in range(900)]
    schema = {"type": "object", "properties": {n: {"type": "null"} for n in names}, "required": names}
    assert valid(schema, json.dumps(dict.fromkeys(names)))


def test_branches_that_a_fixed_member_tells_apart() -> None:
    def kind(name: str, value: str) -> dict[str, Any]:
        properties = {"kind": {"const": name}, "value": {"type": value}}
        return {"type": "object", "properties": properties, "required": ["kind", "value"]}

    schema = {"oneOf": [kind("a", "integer"), {"$ref": "#/$defs/b"}], "$defs": {"b": kind("b", "string")}}
    assert valid(schema, {"kind": "a", "value": 1})
    assert valid(schema, {"kind": "b", "value": "x"})
    assert not valid(schema, {"kind": "b", "value": 1})


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("regex", "^[ab]+c?$", ["abc", "b"], ["c", "abcc"]),
        ("regex", "[+--/][^]", ["+a", ",]", "-\n", "/x"], ["+", "aa"]),
        ("regex", "yes|no/a", ["yes", "no/a"], ["no"]),
        ("regex", "a\\\\$|b\\$", ["a\\", "b$"], ["a", "b", "a$"]),
        ("choice", ["a b", 'q"\n'], ["a b", 'q"\n'], ["a"]),
        ("grammar", 'start: "x" B+\nB: /[0-9]/', ["x1", "x12"], ["x"]),
        ("grammar", 'root ::= "x" num?\nnum ::= [0-9]+', ["x", "x12"], ["y"]),
        ("json_object", None, ['{"a": [1, {"b": null}]}', "{}"], ["[]", "1"]),
    ],
)
def test_other_documents(kind: str, value: Any, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert accepts(kind, value, text), text
    for text in bad:
        assert not accepts(kind, value, text), text


def test_an_enum_may_be_long() -> None:
    values = [f"value {i}" for i in range(3000)]
    for value in (values[0], values[-1]):
        assert valid({"enum": values}, json.dumps(value))
        assert accepts("choice", values, value)
    assert not valid({"enum": values}, json.dumps("value"))
