"""The rules of the two output formats, one case each, in every cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmx.parsers import (
    DEFAULT_PARSER,
    MARKERS,
    CallArgs,
    CallEnd,
    CallStart,
    Content,
    Machine,
    Reasoning,
    make_parser,
    parse,
    reasoning_parser_name,
    tool_parser_name,
)
from unit.parser_helpers import Streamed, assert_same_in_every_cut, stream, text_chunks
from unit.tokenizer_helpers import NS

PROPERTIES = {
    "s": {"type": "string"},
    "n": {"type": "integer"},
    "b": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "integer"}},
    "strings": {"type": "array", "items": {"type": "string"}},
    "o": {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "number"}}},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}},
    },
    {"name": "g"},
]


def run(family: str, output: str, **options: Any) -> Streamed:
    def make() -> Machine:
        given = {
            "reasoning_parser": f"minimax_{family}",
            "tool_parser": f"minimax_{family}",
            "tools": TOOLS,
            **options,
        }
        return make_parser(
            given.pop("reasoning_parser"), given.pop("tool_parser"), call_id=lambda: "id", **given
        )

    return assert_same_in_every_cut(make, output)


def calls(result: Streamed) -> list[tuple[str, Any]]:
    return [(name, json.loads(text)) for name, text in zip(result.names, result.final_arguments, strict=True)]


# ---- M2 ----------------------------------------------------------------------------------------------------

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"


def invoke(body: str, name: str = "f") -> str:
    return f'<invoke name="{name}">\n{body}</invoke>\n'


def parameter(name: str, value: str) -> str:
    return f'<parameter name="{name}">{value}</parameter>\n'


@pytest.mark.parametrize(
    ("output", "reasoning", "content"),
    [
        ("R\n</think>\n\nC", "R", "C"),
        (" R \n\n</think>C", " R \n", "C"),
        ("R\n</think>\n\n\nC\n", "R", "\nC\n"),
        ("R", "R", ""),
        ("R\n", "R\n", ""),
        (" \n</think>C", "", "C"),
        ("<think>R<think></think>C", "R", "C"),
        ("R</think>a</think>b<think>c", "R", "ab<think>c"),
        (f"R{CLOSE}S</think>C{CLOSE}D", f"R{CLOSE}S", "CD"),
        ("R</minimax:tool_cal</think>C<inv", "R</minimax:tool_cal", "C<inv"),
        ("R</think>C" + invoke(parameter("s", "x")), "R", "C" + invoke(parameter("s", "x"))),
        ("R</think>C[e~[", "R", "C"),
        ("R</think>\n\n", "R", ""),
        ("", "", ""),
    ],
)
def test_m2_text(output: str, reasoning: str, content: str) -> None:
    result = run("m2", output)
    assert (result.reasoning, result.content, result.names) == (reasoning, content, [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (invoke(""), [("f", {})]),
        (invoke(parameter("s", " a\n") + parameter("n", "3")), [("f", {"s": " a\n", "n": 3})]),
        (invoke(parameter("undeclared", "3")), [("f", {"undeclared": "3"})]),
        (invoke(parameter("map", '{"a": 1}')), [("f", {"map": {"a": 1}})]),
        (invoke(parameter("s", "1") + parameter("s", "2")), [("f", {"s": "2"})]),
        (invoke(parameter("s", "x"), "no such function") + invoke("", "g"), [("g", {})]),
        ("noise" + invoke("noise" + parameter("n", "1")) + "noise", [("f", {"n": 1})]),
        ("<invoke name='g'></invoke><invoke name=g></invoke>", [("g", {}), ("g", {})]),
        ("<invoke name=\"f\"><parameter name='s'>x</parameter><parameter name=n>2</parameter></invoke>",
         [("f", {"s": "x", "n": 2})]),
        # missing tags
        (invoke('<parameter name="s">x<parameter name="n">2'), [("f", {"s": "x", "n": 2})]),
        (invoke('<parameter name="s">x'), [("f", {"s": "x"})]),
        ('<invoke name="f">' + parameter("s", "x"), [("f", {"s": "x"})]),
        ('<invoke name="f">' + parameter("s", "x") + invoke("", "g"), [("f", {"s": "x"}), ("g", {})]),
        ('<invoke name="f"><parameter name="s">x', [("f", {"s": "x"})]),
        # marker text inside values
        (invoke(parameter("s", f"a{OPEN}{CLOSE}</think>")), [("f", {"s": f"a{OPEN}{CLOSE}</think>"})]),
        (invoke(parameter("s", "a</parameter>\nb")), [("f", {"s": "a</parameter>\nb"})]),
        (invoke(parameter("s", "</par</parameter")), [("f", {"s": "</par</parameter"})]),
        (invoke(parameter("n", "</parameter> x")), [("f", {"n": "</parameter> x"})]),
    ],
)  # fmt: skip
def test_m2_calls(body: str, expected: list[Any]) -> None:
    result = run("m2", f"R</think>C\n{OPEN}\n{body}{CLOSE}")
    assert calls(result) == expected
    assert all(result.complete)
    assert (result.reasoning, result.content) == ("R", "C")


def test_m2_blocks_around_text() -> None:
    block = OPEN + invoke(parameter("n", "1")) + CLOSE
    result = run("m2", f"R\n{block}\nmiddle\n{block}\n")
    assert calls(result) == [("f", {"n": 1})] * 2
    assert (result.reasoning, result.content) == ("R", "\nmiddle")


@pytest.mark.parametrize("block", [OPEN, OPEN + "text" + CLOSE, OPEN + '<invoke name="f', OPEN + "<inv"])
def test_m2_empty_block_leaves_nothing(block: str) -> None:
    result = run("m2", "R</think>C" + block)
    assert (result.reasoning, result.content, result.names) == ("R", "C", [])


@pytest.mark.parametrize(
    ("cut", "deltas", "complete"),
    [
        (parameter("n", "1"), '{"n": 1}', True),
        (parameter("n", "1") + '<parameter name="s', '{"n": 1}', False),
        (parameter("n", "1") + '<parameter name="s">', '{"n": 1}', False),
        (parameter("n", "1") + '<parameter name="s">los', '{"n": 1, "s": "los', False),
        (parameter("n", "1") + '<parameter name="n">2', '{"n": 1}', False),
    ],
)
def test_m2_cut_call(cut: str, deltas: str, complete: bool) -> None:
    result = run("m2", f'</think>{OPEN}<invoke name="f">{cut}')
    assert calls(result) == [("f", {"n": 1})]
    assert (result.arguments, result.complete) == ([deltas], [complete])


def test_m2_string_streams_and_others_wait() -> None:
    parser = make_parser("minimax_m2", "minimax_m2", tools=TOOLS, call_id=lambda: "id")
    assert parser.feed(f'R</think>{OPEN}<invoke name="f">') == [Reasoning("R"), CallStart(0, "id", "f")]
    assert parser.feed('<parameter name="s">ab') == [CallArgs(0, '{"s": "ab')]
    assert parser.feed('c"\n<') == [CallArgs(0, 'c\\"\\n')]
    assert parser.feed("d</parameter>") == [CallArgs(0, "<d")]
    assert parser.feed('\n<parameter name="n">') == [CallArgs(0, '"')]
    assert parser.feed("12") == []
    assert parser.feed("</parameter></invoke>") == [
        CallArgs(0, ', "n": 12}'),
        CallEnd(0, '{"s": "abc\\"\\n<d", "n": 12}', True),
    ]
    assert parser.feed(f"{CLOSE}more", finished=True) == [Content("more")]


def test_m2_modes() -> None:
    block = OPEN + invoke(parameter("n", "1")) + CLOSE
    output = f"R\n</think>\n\nC\n{block}"
    inline = run("m2", output, reasoning_parser="minimax-append-think")
    assert (inline.reasoning, inline.content) == ("", "<think>R\n</think>\n\nC")
    assert calls(inline) == [("f", {"n": 1})]
    open_thought = run("m2", f"R\n{block}", reasoning_parser="minimax_m2_append_think")
    assert (open_thought.content, len(open_thought.names)) == ("<think>R", 1)
    plain = run("m2", output, reasoning_parser="none")
    assert (plain.reasoning, plain.content, len(plain.names)) == ("", "R\n</think>\n\nC", 1)
    no_tools = run("m2", output, tool_parser="none")
    assert (no_tools.reasoning, no_tools.content) == ("R", f"C\n{block}")
    suppressed = run("m2", output, tool_choice="none")
    assert (suppressed.reasoning, suppressed.content, suppressed.names) == ("R", "C", [])
    assert calls(run("m2", OPEN + invoke("", "any") + CLOSE, tools=None)) == [("any", {})]
    for closed in ("x]~b]ai\n<think>\n</think>\n\n", "]~b]ai\n</think>"):
        assert run("m2", "C", prompt=closed).content == "C"
    for opened in ("</think>]~b]ai\n<think>\n", "]~b]ai\n", "no turn </think>"):
        assert run("m2", "R", prompt=opened).reasoning == "R"


M2_IDS = {text: 900 + i for i, text in enumerate(MARKERS["m2"])}


def feed_tokens(parser: Machine, tokens: list[str], special: set[int], ids: dict[str, int]) -> Streamed:
    return stream(parser, [*((t, [ids[t] if i in special else 7]) for i, t in enumerate(tokens)), ("", [])])


def test_m2_markers_count_only_as_tokens_when_ids_are_known() -> None:
    tokens = [
        "a",
        "</think>",
        "b",
        "</think>",
        OPEN,
        "<think>",
        "x",
        OPEN,
        '<invoke name="g">',
        "</invoke>",
        CLOSE,
        "[e~[",
    ]
    parser = make_parser("minimax_m2", "minimax_m2", marker_ids=M2_IDS)
    result = feed_tokens(parser, tokens, {3, 7, 10, 11}, M2_IDS)
    assert (result.reasoning, result.content) == ("a</think>b", f"{OPEN}<think>x")
    assert result.names == ["g"]
    assert parser.reasoning_tokens == 3


def test_marker_whose_text_was_skipped_still_counts() -> None:
    parser = make_parser("minimax_m2", "minimax_m2", marker_ids=M2_IDS)
    result = stream(parser, [("a", [1]), ("", [M2_IDS["</think>"]]), ("b", [2])])
    assert (result.reasoning, result.content, parser.reasoning_tokens) == ("a", "b", 1)


def test_reasoning_tokens_of_several_tokens_at_once() -> None:
    end = M2_IDS["</think>"]
    parser = make_parser("minimax_m2", "minimax_m2", marker_ids=M2_IDS)
    parser.feed("one two\n</think>\n\nthree", [1, 2, 3, end, 4, 5], finished=True)
    assert parser.reasoning_tokens == 3
    parser = make_parser("minimax_m2", "minimax_m2", marker_ids=M2_IDS)
    for text, ids in [("", [1]), ("é", [2]), ("", [3])]:
        parser.feed(text, ids)
    parser.feed("\ufffd", [], finished=True)
    assert parser.reasoning_tokens == 3


# ---- M3 ----------------------------------------------------------------------------------------------------


def m3(text: str) -> str:
    """Short spelling: ``@`` stands for the separator token."""
    return text.replace("@", NS)


@pytest.mark.parametrize(
    ("mode", "output", "reasoning", "content"),
    [
        ("enabled", "R</mm:think>C", "R", "C"),
        ("enabled", "<mm:think>R</mm:think>C", "R", "C"),
        ("enabled", "\n<mm:think>R</mm:think>C", "R", "C"),
        ("enabled", "R", "R", ""),
        ("enabled", "R<mm:think>S</mm:think>C</mm:think>D", "R<mm:think>S", "C</mm:think>D"),
        ("enabled", "@<tool_cal</mm:think>C", "@<tool_cal", "C"),
        (None, "<mm:think>R</mm:think>C", "R", "C"),
        (None, "<mm:think> R\n</mm:think>\nC ", " R\n", "\nC "),
        (None, "<mm:think>R", "R", ""),
        (None, "C", "", "C"),
        (None, " C", "", " C"),
        (None, "</mm:think>C", "", "C"),
        (None, " \n</mm:think>C", "", "C"),
        (None, "</mm:think><mm:think>R</mm:think>C", "R", "C"),
        (None, "</mm:think></mm:think>C", "", "</mm:think>C"),
        (None, "a</mm:think>b", "", "a</mm:think>b"),
        (None, "a<mm:think>R</mm:think>b", "", "a<mm:think>R</mm:think>b"),
        (None, "<mm:thin", "", "<mm:thin"),
        (None, 'a@<invoke name="f">@</invoke>b@', "", 'a@<invoke name="f">@</invoke>b@'),
        (None, "a@\n<tool_call>b", "", "a@\n<tool_call>b"),
        (None, "a<tool_call>b[e~[", "", "a<tool_call>b"),
        ("disabled", "C", "", "C"),
        ("disabled", "</mm:think>C", "", "C"),
    ],
)
def test_m3_text(mode: str | None, output: str, reasoning: str, content: str) -> None:
    opener = {"enabled": "<mm:think>", "disabled": "</mm:think>", None: ""}[mode]
    for where in ({"thinking_mode": mode}, {"prompt": f"<mm:think></mm:think>]~b]ai\n{opener}"}):
        result = run("m3", m3(output), **where)
        assert (result.reasoning, result.content, result.names) == (m3(reasoning), m3(content), [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", {}),
        ("@<s> a\n@</s>@<n>3@</n>", {"s": " a\n", "n": 3}),
        ("@<s>1@</s>@<b>true@</b>@<x>1@</x>", {"s": "1", "b": True, "x": "1"}),
        ("@<list>@<item>1@</item>@<item>2@</item>@</list>", {"list": [1, 2]}),
        ("@<list>[1, 2]@</list>", {"list": [1, 2]}),
        ("@<list>@<any>1@</any>@<name>2@</name>@</list>", {"list": [1, 2]}),
        ("@<list>@</list>@<o>\n@</o>@<s>@</s>@<n>@</n>@<x>@</x>",
         {"list": [], "o": {}, "s": "", "n": "", "x": ""}),
        ("@<o>@<s>1@</s>@<n>2.0@</n>@<x>3@</x>@</o>", {"o": {"s": "1", "n": 2, "x": "3"}}),
        ("@<map>@<a>1@</a>@<b>2@</b>@</map>", {"map": {"a": 1, "b": 2}}),
        ("@<x>@<item>1@</item>@<item>@<k>v@</k>@</item>@</x>", {"x": ["1", {"k": "v"}]}),
        ("@<x>@<k>1@</k>@<item>2@</item>@</x>", {"x": {"k": "1", "item": "2"}}),
        ("@<x>\n@<k>1@</k>\n@</x>", {"x": {"k": "1"}}),
        # repeated names
        ("@<n>1@</n>@<s>a@</s>@<n>2@</n>@<n>3@</n>", {"n": [1, 2, 3], "s": "a"}),
        ("@<o>@<s>1@</s>@<s>2@</s>@</o>@<n>1@</n>", {"o": {"s": ["1", "2"]}, "n": 1}),
        # text beside children, children in a string
        ("@<o>a@<s>1@</s>b@</o>", {"o": {"s": "1", "$text": "ab"}}),
        ("@<o>a@<$text>1@</$text>@</o>", {"o": {"$text": "1", "$$text": "a"}}),
        ("@<list>@<item>1@</item>5@</list>", {"list": [1, 5]}),
        ("@<s>text@<k>1@</k>@</s>@<n>1@</n>", {"s": {"k": "1", "$text": "text"}, "n": 1}),
        ("@<strings>@<item>a@<k>1@</k>@</item>@<item>b@</item>@</strings>",
         {"strings": [{"k": "1", "$text": "a"}, "b"]}),
        # elements named like the grammar, tags without separator, separators without tag
        ("@<tool_call>@<invoke>1@</invoke>@</tool_call>", {"tool_call": {"invoke": "1"}}),
        ("@<s><n>3</n> </s> @ @x@<>@</s>", {"s": "<n>3</n> </s> @ @x@<>"}),
        ("noise@<n>1@</n>noise@", {"n": 1}),
        # malformed
        ("@<n>1@<s>a", {"n": {"s": "a", "$text": "1"}}),
        ("@<o>@<s>a@</o>@<n>1@</n>", {"o": {"s": "a"}, "n": 1}),
        ("@<o>@<s>a@</typo>@<n>1@</n>@</o>", {"o": {"s": "a", "n": 1}}),
        ("@</n>@<n>1@</n>", {"n": 1}),
        ("@<n>1@</ n >", {"n": 1}),
    ],
)  # fmt: skip
def test_m3_arguments(body: str, expected: Any) -> None:
    wanted = json.loads(m3(json.dumps(expected)))
    result = run("m3", m3(f'C @<tool_call>\n@<invoke name="f">{body}@</invoke>\n@</tool_call>'))
    assert calls(result) == [("f", wanted)]
    assert result.complete == [True]
    assert (result.reasoning, result.content) == ("", "C ")


def test_m3_calls_and_blocks() -> None:
    one = '@<invoke name="f">@<n>1@</n>@</invoke>\n'
    other = "@<invoke name='no such function'>@<n>1@</n>"
    block = f"@<tool_call>noise{one}{other}{one}@</tool_call>"
    result = run("m3", m3(f"\n{block} middle {block}\n"))
    three = [("f", {"n": 1}), ("no such function", {"n": "1"}), ("f", {"n": 1})]
    assert calls(result) == three * 2
    assert result.content == " middle "
    swallowed = run("m3", m3(f"R{block}"), thinking_mode="enabled")
    assert (swallowed.reasoning, calls(swallowed)) == ("R", three)


@pytest.mark.parametrize(
    "block",
    ["@<tool_call>", "@<tool_call>text@</tool_call>", '@<tool_call>@<invoke name="f', "@<tool_call>@<inv"],
)
def test_m3_empty_block_leaves_nothing(block: str) -> None:
    result = run("m3", m3("C" + block))
    assert (result.content, result.names) == ("C", [])


@pytest.mark.parametrize(
    ("cut", "deltas", "complete"),
    [
        ("", '{"n": 1}', True),
        ("@", '{"n": 1}', False),
        ("@<s", '{"n": 1}', False),
        ("@<s>", '{"n": 1}', False),
        ("@<s>los", '{"n": 1, "s": "los', False),
        ("@<o>@<s>", '{"n": 1}', False),
        ("@<o>@<s>a", '{"n": 1, "o": {"s": "a', False),
        ("@<list>@<item>1", '{"n": 1}', False),
    ],
)
def test_m3_cut_call(cut: str, deltas: str, complete: bool) -> None:
    result = run("m3", m3(f'@<tool_call>@<invoke name="f">@<n>1@</n>{cut}'))
    assert calls(result) == [("f", {"n": 1})]
    assert (result.arguments, result.complete) == ([deltas], [complete])


def test_m3_nested_strings_stream() -> None:
    parser = make_parser("minimax_m3", "minimax_m3", tools=TOOLS, call_id=lambda: "id")
    parser.feed(m3('@<tool_call>@<invoke name="f">'))
    assert parser.feed(m3("@<o>@<s>ab")) == [CallArgs(0, '{"o": {"s": "ab')]
    assert parser.feed("c") == [CallArgs(0, "c")]
    assert parser.feed(m3("@</s>@<n>1")) == [CallArgs(0, '"')]
    assert parser.feed(m3("@</n>")) == [CallArgs(0, ', "n": 1')]
    assert parser.feed(m3("@</o>")) == [CallArgs(0, "}")]


def test_m3_depth_is_limited() -> None:
    deep = "".join(f"@<k{i}>" for i in range(200)) + "v" + "".join(f"@</k{i}>" for i in reversed(range(200)))
    parser = make_parser("minimax_m3", "minimax_m3")
    message = parse(parser, m3(f'@<tool_call>@<invoke name="f">{deep}@<n>1@</n>@</invoke>@</tool_call>'))
    value = json.loads(message.tool_calls[0].arguments)
    assert value["n"] == "1"
    depth = 0
    while isinstance(value, dict):
        value = next(iter(value.values()))
        depth += 1
    assert (depth, value) == (128, "")


def test_m3_modes() -> None:
    output = m3('<mm:think>R</mm:think>C@<tool_call>@<invoke name="f">@</invoke>@</tool_call>')
    for options in ({"tool_choice": "none"}, {"tool_parser": "none"}):
        result = run("m3", output, **options)
        assert (result.reasoning, result.content) == ("R", output.partition("</mm:think>")[2])
    plain = run("m3", output, reasoning_parser="none")
    assert (plain.content, plain.names) == ("<mm:think>R</mm:think>C", ["f"])
    continued = run("m3", "<mm:think>x", prompt="]~b]ai\n</mm:think>The tag is ")
    assert (continued.reasoning, continued.content) == ("", "<mm:think>x")


def test_m3_reasoning_tokens() -> None:
    ids = {text: 900 + i for i, text in enumerate(MARKERS["m3"])}
    for tokens, special, expected in [
        (["<mm:think>", "a", "b", "</mm:think>", "c"], {0, 3}, 2),
        (["<mm", ":think>", "a", "b", "</mm", ":think>", "c"], set(), 2),
        (["c", "d"], set(), 0),
    ]:
        parser = make_parser("minimax_m3", "minimax_m3", marker_ids=ids)
        feed_tokens(parser, tokens, special, ids)
        assert parser.reasoning_tokens == expected


# ---- names and use -----------------------------------------------------------------------------------------


def test_names() -> None:
    assert reasoning_parser_name("minimax") == "minimax_m2"
    assert reasoning_parser_name("minimax-append-think") == "minimax_m2_append_think"
    assert reasoning_parser_name("minimax-m3") == "minimax_m3"
    assert tool_parser_name("minimax-m2") == "minimax_m2"
    assert DEFAULT_PARSER == {"m2": "minimax_m2", "m3": "minimax_m3"}
    with pytest.raises(ValueError, match=r"^reasoning_parser: must be one of .*got 'qwen'"):
        reasoning_parser_name("qwen")
    with pytest.raises(ValueError, match=r"^tool_parser: must be one of"):
        tool_parser_name("minimax_m2_append_think")
    with pytest.raises(ValueError, match=r"^tool_parser: must be none or of the family"):
        make_parser("minimax_m2", "minimax_m3")


def test_without_parsers_all_is_content() -> None:
    text = f"<think>x</think>{OPEN}{NS}<tool_call>"
    assert run("m2", text, reasoning_parser="none", tool_parser="none").content == text


def test_finish_reason_and_use_after_the_end() -> None:
    message = parse(make_parser("minimax_m3", "minimax_m3"), m3('@<tool_call>@<invoke name="f">@</invoke>'))
    assert message.finish_reason("stop") == "tool_calls"
    assert message.finish_reason("length") == "length"
    assert message.tool_calls[0].id.startswith("call_")
    assert (message.reasoning, message.content) == (None, None)
    parser = make_parser("none", "none")
    assert stream(parser, text_chunks(["a", "b"])).content == "ab"
    with pytest.raises(ValueError, match="finished before"):
        parser.feed("c")


def test_lone_surrogates_can_not_forge_markers() -> None:
    assert run("m3", "a\ud802<tool_call>").content == "a\ufffd<tool_call>"
