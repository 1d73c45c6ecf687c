"""Whatever a model says, what the grammar lets through is valid: random schemas, random logits."""

from __future__ import annotations

import json
import random

import pytest

from grammar.helpers import calls, check, document, draw, model, parameters, random_schema, read, tool
from mmx.grammar import SchemaError
from mmx.grammar.build import Family
from mmx.grammar.constraint import Start

LIMIT = 600  # tokens of an answer
STARTS: dict[Family, list[Start]] = {"m2": ["thought", "grammar"], "m3": ["thought", "choice", "grammar"]}

# Four tests of this size run at every change; the many are for a release.
FEW, MANY = 75, 2500
NUM_CASES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", NUM_CASES)
@pytest.mark.parametrize("family", ["m2", "m3"])
def test_random_calls_are_valid(family: Family, count: int) -> None:
    m, num_cut = model(family), 0
    for seed in range(count):
        rng = random.Random(seed)
        tools = [tool("f", parameters(rng)), tool("ns.g-2", parameters(rng))]
        start, most = rng.choice(STARTS[family]), rng.choice([1, 3])
        drawn = draw(m, calls(m, tools, start, most=most), LIMIT, seed)
        if not drawn.ended:
            num_cut += 1
            continue
        answer = read(m, start, drawn, tools)
        assert not answer.content, f"seed {seed}: text beside the calls"
        assert 1 <= len(answer.tool_calls) <= most, f"seed {seed}"
        for call in answer.tool_calls:
            assert call.complete, f"seed {seed}"
            (schema,) = [t.parameters for t in tools if t.name == call.name]
            check(json.loads(call.arguments), schema)
    assert num_cut < max(2, count // 100), f"{num_cut} of {count} answers reached their limit"


@pytest.mark.parametrize("count", NUM_CASES)
@pytest.mark.parametrize("family", ["m2", "m3"])
def test_random_documents_are_valid(family: Family, count: int) -> None:
    m, num_cut = model(family), 0
    for seed in range(count):
        rng = random.Random(seed)
        schema = parameters(rng) if seed % 3 else {"$defs": parameters(rng)["$defs"], **_any(rng)}
        start = rng.choice(STARTS[family])
        drawn = draw(m, document(m, schema, start), LIMIT, seed)
        if not drawn.ended:
            num_cut += 1
            continue
        content = read(m, start, drawn).content
        assert content is not None, f"seed {seed}"
        check(json.loads(content), schema)
    assert num_cut < max(2, count // 100), f"{num_cut} of {count} answers reached their limit"


def _any(rng: random.Random) -> dict[str, object]:
    """A schema of any type, not only of objects."""
    schema = random_schema(rng)
    assert isinstance(schema, dict)
    return schema


def test_a_limit_too_small_for_the_schema_is_cut_and_not_invalid() -> None:
    schema = {"type": "object", "properties": {"k" * 60: {"type": "integer"}}, "required": ["k" * 60]}
    m = model("m3")
    drawn = draw(m, document(m, schema, "grammar"), 4, 0)
    assert not drawn.ended
    assert len(drawn.token_ids) == 4


@pytest.mark.parametrize("family", ["m2", "m3"])
def test_free_arguments_of_a_tool_without_strict(family: Family) -> None:
    m = model(family)
    tools = [tool("f", {"type": "object", "properties": {"n": {"type": "integer"}}}, enforced=False)]
    for seed in range(20):
        drawn = draw(m, calls(m, tools, "grammar"), LIMIT, seed)
        answer = read(m, "grammar", drawn, tools)
        assert drawn.ended and answer.tool_calls and all(c.name == "f" for c in answer.tool_calls)
        for call in answer.tool_calls:
            assert isinstance(json.loads(call.arguments), dict)


def test_what_can_not_be_said_in_the_notation_is_refused_by_name() -> None:
    with pytest.raises(SchemaError, match=r"the property name 'a>b' can not be the name"):
        calls(model("m3"), [tool("f", {"type": "object", "properties": {"a>b": {}}})], "grammar")
    # Behind a pattern, values hold no "<": with this one no value would be left.
    unwritable = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^<b>$"}}}
    for family in ("m2", "m3"):
        with pytest.raises(SchemaError, match="no string has the pattern and the length asked for"):
            calls(model(family), [tool("f", unwritable)], "grammar")
