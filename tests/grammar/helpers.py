"""Random schemas, and answers drawn with random logits from what a constraint allows."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np
from jsonschema import Draft202012Validator, FormatChecker

from mmx.grammar import Calls, CallTool, Document, build
from mmx.grammar.build import MARKERS, Family
from mmx.grammar.constraint import Start, make_constraint
from mmx.grammar.sequence import Sequence, compile_grammar
from mmx.grammar.vocabulary import Vocabulary
from mmx.parsers import MARKERS as PARSER_MARKERS
from mmx.parsers import ParsedMessage, make_parser, parse
from mmx.protocol import Constraint
from mmx.tokenizer import Tokenizer
from unit.tokenizer_helpers import DEMO, m2_folder


class Model(NamedTuple):
    """The text side of a model of a family."""

    family: Family
    folder: Path
    tokenizer: Tokenizer
    vocabulary: Vocabulary


@cache
def model(family: Family) -> Model:
    folder = DEMO if family == "m3" else m2_folder(Path(mkdtemp()))
    tokenizer = Tokenizer(folder)
    return Model(family, folder, tokenizer, Vocabulary(tokenizer))


class Drawn(NamedTuple):
    token_ids: list[int]
    ended: bool


def draw(model: Model, constraint: Constraint, limit: int, seed: int, prototype: Any = None) -> Drawn:
    """One answer with random logits: every allowed token is as likely as any other."""
    rng = np.random.default_rng(seed)
    vocabulary = model.vocabulary
    if prototype is None and constraint.grammar:
        prototype = compile_grammar(vocabulary, constraint.grammar)
    sequence = Sequence(vocabulary, constraint, prototype, limit)
    row = np.zeros(vocabulary.num_words, np.int32)
    never = {*model.tokenizer.unused_ids, *model.tokenizer.input_only_ids}
    ids: list[int] = []
    while len(ids) < limit:
        if sequence.fill(row):
            bits = np.unpackbits(row.view(np.uint8), bitorder="little")[: vocabulary.size]
            choices = np.flatnonzero(bits)
        else:
            choices = np.array([i for i in range(vocabulary.size) if i not in never])
        token_id = int(choices[rng.integers(len(choices))])
        if token_id in model.tokenizer.eos_token_ids:
            return Drawn(ids, True)
        ids.append(token_id)
        sequence.advance(token_id)
    return Drawn(ids, False)


def document(model: Model, schema: Any, start: Start) -> Constraint:
    built = build(
        Document("json_schema", schema, "response_format.json_schema.schema"), None, family=model.family
    )
    return make_constraint(model.tokenizer, model.family, built, start)


def tool(name: str, schema: Any, *, enforced: bool = True) -> CallTool:
    return CallTool(name, schema, enforced, "tools[0].function.parameters")


def calls(model: Model, tools: list[CallTool], start: Start, *, most: int = 4) -> Constraint:
    ids = model.tokenizer.ids_of(MARKERS[model.family])
    built = build(None, Calls(model.family, tools, most, ids))
    return make_constraint(model.tokenizer, model.family, built, start)


OPENED: dict[tuple[Family, Start], str] = {
    ("m2", "thought"): "]~b]ai\n<think>\n",
    ("m2", "grammar"): "]~b]ai\n<think>\n\n</think>\n\n",
    ("m3", "thought"): "]~b]ai\n<mm:think>",
    ("m3", "choice"): "]~b]ai\n",
    ("m3", "grammar"): "]~b]ai\n</mm:think>",
}
"""The end of the prompt for each way in which an answer begins."""


def read(model: Model, start: Start, drawn: Drawn, tools: list[CallTool] | None = None) -> ParsedMessage:
    """The answer as the parser of the family reads it."""
    name = f"minimax_{model.family}"
    parser = make_parser(
        name,
        name,
        prompt=OPENED[model.family, start],
        tools=[{"name": t.name, "parameters": t.parameters} for t in tools] if tools else None,
        marker_ids=model.tokenizer.ids_of(PARSER_MARKERS[model.family]),
    )
    text = model.tokenizer.decode(drawn.token_ids, skip_special_tokens=False)
    return parse(parser, text, drawn.token_ids)


def check(value: Any, schema: Any) -> None:
    """Fails unless ``value`` is valid, formats included."""
    checker = FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])
    Draft202012Validator(schema, format_checker=checker).validate(value)


# ---- random schemas ----------------------------------------------------------------------------------------

_NAMES = "a b name value x-y count_2 größe item url kind id".split()
_PATTERNS = ["^[a-z]{2,5}$", "^(foo|ba[rz])+$", "[0-9]{3}", "^#[0-9a-fA-F]{6}$", r"^\w+@\w+\.de$", "^a.*z$"]
_FORMATS = ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "duration", "hostname"]
_KEYS = ["^x_", "^[a-z]+$", "[0-9]"]


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    """Any schema that can be enforced in both notations."""
    kinds = ["string", "string", "integer", "number", "boolean", "null", "enum", "const", "format", "pattern"]
    kinds += ["bounded enum"]
    if depth > 0:
        kinds += ["both", "named and keyed"]
        kinds += ["object", "object", "array", "array", "map", "free", "union", "typeless", "any", "tuple"]
        kinds += ["nullable", "ref", "keyed"]
    return _MAKERS[rng.choice(kinds)](rng, depth)


def random_object(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def parameters(rng: random.Random) -> dict[str, Any]:
    """The schema of a function's arguments, with a recursive part now and then."""
    schema = random_object(rng)
    node = {
        "type": "object",
        "properties": {
            "label": {"type": "string", "maxLength": 5},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3},
        },
        "required": ["label"],
        "additionalProperties": False,
    }
    return {**schema, "$defs": {"node": node}}


def _string(rng: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.3:
        schema["minLength"] = rng.randint(0, 12)
    if rng.random() < 0.3:
        schema["maxLength"] = schema.get("minLength", 0) + rng.randint(0, 20)
    return schema


def _numeric(kind: str, rng: random.Random) -> Any:
    schema: dict[str, Any] = {"type": kind}
    low = rng.choice([-1000, -17, -1, 0, 1, 3, 250]) + (
        0 if kind == "integer" else rng.choice([0, 0.5, 0.125])
    )
    if rng.random() < 0.5:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.5:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice([2, 10, 99.75, 5000])
    return schema


def _enum(rng: random.Random, depth: int) -> Any:
    values = [
        "auto",
        "a b",
        "",
        "null",
        "1",
        1,
        2.5,
        -3,
        True,
        False,
        None,
        "größe",
        "x\ny",
        [1, "a"],
        {"k": 1},
    ]
    kept = rng.sample(values, rng.randint(1, 4))
    if all(isinstance(value, str) for value in kept) and rng.random() < 0.5:
        return {"type": "string", "enum": kept}
    return {"enum": [*kept, "surely"]}


def _bounded_enum(rng: random.Random, depth: int) -> Any:
    """Other keywords exclude some of the values."""
    limits = rng.choice(
        [{"minLength": 3}, {"minimum": 2}, {"pattern": "^a"}, {"multipleOf": 2}, {"maxItems": 0}]
    )
    return {"enum": ["a", "abc", "xyz", "1", 1, 2, True, None, [1], {"k": 1}], **limits}


def _both(rng: random.Random, depth: int) -> Any:
    """Two sides that bind each other's members and items."""
    sides: list[Any] = [
        {"properties": {"a": {"minLength": 2}, "x_1": {}}, "additionalProperties": {"maxLength": 9}},
        {"patternProperties": {"^[a-z]+$": {"type": "string"}, "^x_": {"type": "null"}}},
        {"patternProperties": {"^x_": {"enum": [None, "x"]}}, "additionalProperties": {"type": "string"}},
        {"required": ["a"]},
    ]
    if rng.random() < 0.3:
        sides = [
            {"prefixItems": [{"minimum": 3}]},
            {"items": {"type": "integer"}},
            {"minItems": 1, "maxItems": 3},
        ]
        return {"type": "array", "allOf": rng.sample(sides, 3)}
    return {"type": "object", "allOf": rng.sample(sides, rng.randint(1, 3))}


def _named_and_keyed(rng: random.Random, depth: int) -> Any:
    """Names that are declared and match patterns, names that match several."""
    keys = {"^[a-z]+$": {"minLength": 2}, "^(foo|b)": {"type": "string"}, "[0-9]$": False}
    chosen = rng.sample([*keys], rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b1": random_schema(rng, depth - 1)},
        "patternProperties": {key: keys[key] for key in chosen},
        "required": rng.sample(["a", "name"] if "^[a-z]+$" in chosen else ["a"], rng.randint(0, 1)),
        "additionalProperties": rng.choice([False, {"type": "integer"}]),
    }


def _array(rng: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.85:
        schema["items"] = random_schema(rng, depth - 1)
    if rng.random() < 0.3:
        schema["minItems"] = rng.randint(0, 3)
    if rng.random() < 0.3:
        schema["maxItems"] = schema.get("minItems", 0) + rng.randint(0, 3)
    return schema


def _map(rng: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": random_schema(rng, depth - 1)}
    if rng.random() < 0.3:
        schema["properties"] = {"fixed": random_schema(rng, 0)}
    if rng.random() < 0.3:
        schema["maxProperties"] = rng.randint(1, 4)
    if rng.random() < 0.3:
        schema["minProperties"] = 1
    return schema


def _typeless(rng: random.Random, depth: int) -> Any:
    schema = random_object(rng, depth)
    del schema["type"]
    return schema if schema["properties"] else {"properties": {"a": {"type": "integer"}}}


def _nullable(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.5:
        return {"type": [rng.choice(["string", "integer", "number", "boolean"]), "null"]}
    return {"anyOf": [random_schema(rng, depth - 1), {"type": "null"}]}


_MAKERS: dict[str, Any] = {
    "string": _string,
    "integer": lambda rng, _: _numeric("integer", rng),
    "number": lambda rng, _: _numeric("number", rng),
    "boolean": lambda rng, _: {"type": "boolean"},
    "null": lambda rng, _: {"type": "null"},
    "enum": _enum,
    "bounded enum": _bounded_enum,
    "both": _both,
    "named and keyed": _named_and_keyed,
    "const": lambda rng, _: {"const": rng.choice(["x", 7, True, None])},
    "format": lambda rng, _: {"type": "string", "format": rng.choice(_FORMATS)},
    "pattern": lambda rng, _: {"type": "string", "pattern": rng.choice(_PATTERNS)},
    "object": random_object,
    "array": _array,
    "map": _map,
    "free": lambda rng, _: {"type": "object"},
    "union": lambda rng, depth: {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]},
    "typeless": _typeless,
    "any": lambda rng, _: rng.choice([{}, {"description": "anything"}]),
    "tuple": lambda rng, depth: {
        "type": "array",
        "prefixItems": [random_schema(rng, depth - 1) for _ in range(2)],
        "items": False,
        "minItems": rng.randint(0, 2),
    },
    "nullable": _nullable,
    "ref": lambda rng, _: {"$ref": "#/$defs/node"},
    "keyed": lambda rng, depth: {
        "type": "object",
        "patternProperties": {rng.choice(_KEYS): random_schema(rng, depth - 1)},
        "additionalProperties": False,
    },
}
