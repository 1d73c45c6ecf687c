"""Parsers on random input: cuts never matter, nothing leaks, rendered calls come back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.parsers import Machine, make_parser
from unit.parser_helpers import assert_same_in_every_cut, stream, text_chunks
from unit.tokenizer_helpers import NS, reference_chat_template

TOOLS = [
    {
        "name": "f",
        "parameters": {
            "properties": {
                "s": {"type": "string"},
                "n": {"type": "integer"},
                "a": {"type": "array", "items": {"type": "string"}},
                "o": {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "number"}}},
                "u": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            }
        },
    }
]
M2_PIECES = [
    "<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="f">',
    '<invoke name="x">', '<parameter name="s">', '<parameter name="n">', '<parameter name="a">',
    "</parameter>", "</invoke>", "\n", " ", "x", "1", "<", "é", '"', "\\", "null", "[1]",
    "</par", "<minimax:tool", "[e~[",
]  # fmt: skip
M3_PIECES = [
    "<mm:think>", "</mm:think>", NS, NS + "<tool_call>", NS + "</tool_call>", NS + '<invoke name="f">',
    NS + "</invoke>", NS + "<s>", NS + "</s>", NS + "<n>", NS + "</n>", NS + "<a>", NS + "</a>",
    NS + "<item>", NS + "</item>", NS + "<o>", NS + "</o>", NS + "<z>", NS + "</z>",
    "\n", " ", "x", "1", "<", "]", "é", '"', "\\", "null", "[1]", NS[:5], NS + "<",
]  # fmt: skip


TEMPLATES = {"m2": reference_chat_template("m2"), "m3": reference_chat_template("m3")}


def parser(family: str, **options: Any) -> Machine:
    name = f"minimax_{family}"
    return make_parser(name, name, tools=TOOLS, call_id=lambda: "id", **options)


def joined(pieces: list[str], opening: list[str]) -> st.SearchStrategy[str]:
    """Half of the examples begin inside a call, where most of the grammar is."""
    body = st.lists(st.sampled_from(pieces), max_size=12).map("".join)
    return st.tuples(st.sampled_from(["", "".join(opening)]), body).map("".join)


@settings(max_examples=100, deadline=None)
@given(joined(M2_PIECES, ["</think>", "<minimax:tool_call>", '<invoke name="f">', '<parameter name="s">']))
def test_m2_cuts_never_matter(output: str) -> None:
    assert_same_in_every_cut(lambda: parser("m2"), output)


@settings(max_examples=100, deadline=None)
@given(
    joined(M3_PIECES, [NS, "<tool_call>", NS, '<invoke name="f">', NS, "<o>"]),
    st.sampled_from(["enabled", None]),
)
def test_m3_cuts_never_matter(output: str, mode: str | None) -> None:
    assert_same_in_every_cut(lambda: parser("m3", thinking_mode=mode), output)


@settings(max_examples=60, deadline=None)
@given(
    joined(M2_PIECES, []),
    st.sampled_from(["none", "minimax-append-think"]),
    st.sampled_from(["none", "auto"]),
)
def test_m2_modes_cuts_never_matter(output: str, reasoning: str, choice: str) -> None:
    assert_same_in_every_cut(lambda: make_parser(reasoning, "minimax_m2", tool_choice=choice), output)


# ---- round trip through the chat template ------------------------------------------------------------------

HOSTILE = [
    "</mm:think>",
    "<think>",
    "<tool_call>",
    "[e~[",
    "<minimax:tool_call>",
    "</item>",
    "<b>&amp;</b>",
    "]<]min",
    "{",
    "\n",
]
TEXT = st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=4).map(
    "".join
)
KEYS = st.text("abcdeé_-.$ 0", min_size=1, max_size=6).filter(lambda key: key == key.strip())


def leaves(family: str) -> st.SearchStrategy[Any]:
    text = TEXT.filter(lambda t: NS not in t and "</parameter>" not in t and "[e~[" not in t)
    kinds = (
        text
        | st.booleans()
        | st.integers(-(10**25), 10**25)
        | st.floats(allow_nan=False, allow_infinity=False)
    )
    return kinds | st.none() if family == "m2" else kinds


def values(family: str) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves(family),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    )


def schema_of(value: Any) -> dict[str, Any]:
    """The schema that describes one value."""
    if value is None:
        return {"type": "null"}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, dict):
        return {"type": "object", "properties": {key: schema_of(member) for key, member in value.items()}}
    if isinstance(value, list):
        return {"type": "array", "prefixItems": [schema_of(item) for item in value]}
    return {"type": {int: "integer", float: "number", str: "string"}[type(value)]}


def equal(got: Any, wanted: Any) -> bool:
    """Deep equality; an integer stands for the float of the same value."""
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(equal(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(equal, got, wanted))
    return float(got) == wanted if isinstance(wanted, float) else got == wanted


MARKERS = ["<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"]
M3_MARKERS = ["<mm:think>", "</mm:think>", NS]
SAFE = st.text(st.characters(codec="utf-8", exclude_characters="<>[]"), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)


def check_round_trip(
    family: str, calls: list[tuple[str, dict[str, Any]]], reasoning: str, content: str
) -> None:
    template = TEMPLATES[family]
    tools = [{"name": name, "parameters": schema_of(arguments)} for name, arguments in calls]
    turn = {
        "role": "assistant",
        "reasoning_content": reasoning,
        "content": content,
        "tool_calls": [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls],
    }
    kwargs = {"thinking_mode": "enabled"}
    history = [{"role": "user", "content": "go"}]
    prompt = template.render(history, template_kwargs=kwargs).text
    whole = template.render([*history, turn], template_kwargs=kwargs, add_generation_prompt=False).text
    assert whole.startswith(prompt)
    output = whole.removeprefix(prompt).removesuffix("[e~[\n")
    name = f"minimax_{family}"
    for pieces in ([output], list(output)):
        machine = make_parser(name, name, prompt=prompt, tools=tools)
        streamed = stream(machine, text_chunks(pieces))
        assert streamed.names == [name for name, _ in calls]
        assert streamed.reasoning == reasoning
        assert streamed.content == content
        for arguments, (_, wanted) in zip(streamed.arguments, calls, strict=True):
            assert equal(json.loads(arguments), wanted)
        for marker in MARKERS + M3_MARKERS:
            assert marker not in streamed.content + streamed.reasoning


def calls_of(family: str) -> st.SearchStrategy[list[tuple[str, dict[str, Any]]]]:
    arguments = st.dictionaries(KEYS, values(family), max_size=4)
    names = st.lists(st.sampled_from(["f", "ns.g", "h-2"]), min_size=1, max_size=3, unique=True)
    return names.flatmap(
        lambda chosen: st.tuples(*[arguments.map(lambda a, n=n: (n, a)) for n in chosen]).map(list)
    )


@settings(max_examples=100, deadline=None)
@given(calls_of("m2"), SAFE, SAFE)
def test_m2_round_trip(calls: list[tuple[str, dict[str, Any]]], reasoning: str, content: str) -> None:
    check_round_trip("m2", calls, reasoning, content)


@settings(max_examples=100, deadline=None)
@given(calls_of("m3"), SAFE, SAFE)
def test_m3_round_trip(calls: list[tuple[str, dict[str, Any]]], reasoning: str, content: str) -> None:
    check_round_trip("m3", calls, reasoning, content)
