"""Reference templates byte for byte, templates written by others, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmx.tokenizer import ChatTemplate, ChatTemplateError, detect_family, reference_template
from unit.tokenizer_helpers import DEMO, NS, m3_tokenizer, reference_chat_template

MARKERS = list(m3_tokenizer().control_ids)
M2 = reference_chat_template("m2")
M3 = reference_chat_template("m3")

TIDE = {
    "type": "function",
    "function": {
        "name": "get_tide",
        "description": "Tide height",
        "parameters": {
            "type": "object",
            "properties": {
                "port": {"type": "string"},
                "hours": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["port"],
        },
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(name: str, arguments: Any, call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


# ---- M2 ----------------------------------------------------------------------------------------------------


def test_m2_plain() -> None:
    assert M2.render([user("Hi")]).text == (
        "]~!b[]~b]system\n"
        "You are a helpful assistant. Your name is MiniMax-M2.7 and is built by MiniMax.[e~[\n"
        "]~b]user\nHi[e~[\n"
        "]~b]ai\n<think>\n"
    )


M2_TOOL_TURN = """\
]~!b[]~b]system
Be brief.

# Tools
You may call one or more tools to assist with the user query.
Here are the tools available in JSONSchema format:

<tools>
<tool>{"name": "get_tide", "description": "Tide height", "parameters": {"type": "object", "properties": \
{"port": {"type": "string"}, "hours": {"type": "array", "items": {"type": "integer"}}}, \
"required": ["port"]}}</tool>
</tools>

When making tool calls, use XML format to invoke tools and pass parameters:

<minimax:tool_call>
<invoke name="tool-name-1">
<parameter name="param-key-1">param-value-1</parameter>
<parameter name="param-key-2">param-value-2</parameter>
...
</invoke>
</minimax:tool_call>[e~[
]~b]user
Tide in Brest?[e~[
]~b]ai
<think>
Use the function.
</think>

Checking.
<minimax:tool_call>
<invoke name="get_tide">
<parameter name="port">Brest</parameter>
<parameter name="hours">[6, 12]</parameter>
</invoke>
</minimax:tool_call>[e~[
]~b]tool
<response>{"m":4.1}</response>[e~[
]~b]ai
<think>
"""


@pytest.mark.parametrize("form", ["reasoning_content", "reasoning", "reasoning_details", "content"])
def test_m2_tools_call_and_result(form: str) -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": "Checking."}
    if form == "content":
        answer["content"] = "<think>\nUse the function.\n</think>\n\nChecking."
    elif form == "reasoning_details":
        answer[form] = [{"type": "reasoning.text", "text": "Use the function."}]
    else:
        answer[form] = "Use the function."
    answer["tool_calls"] = [call("get_tide", '{"port": "Brest", "hours": [6, 12]}')]
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Tide in Brest?"),
        answer,
        {"role": "tool", "tool_call_id": "c1", "content": '{"m":4.1}'},
    ]
    assert M2.render(messages, tools=[TIDE]).text == M2_TOOL_TURN


def test_m2_second_user_turn_drops_old_reasoning() -> None:
    messages = [user("A"), {"role": "assistant", "reasoning_content": "old", "content": "B"}, user("C")]
    expected = "]~b]user\nA[e~[\n]~b]ai\nB[e~[\n]~b]user\nC[e~[\n]~b]ai\n<think>\n"
    assert M2.render(messages).text.endswith("MiniMax.[e~[\n" + expected)


def test_m2_details() -> None:
    calls = [call("f", {}, "c1"), call("g", {"o": {"k": "ü<"}, "t": "a<b>&\n"}, "c2")]
    messages = [
        {"role": "system", "content": "S", "current_date": "2026-01-02", "current_location": "Brest"},
        user("A"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
    ]
    assert M2.render(messages, add_generation_prompt=False).text == (
        "]~!b[]~b]system\nS\nCurrent date: 2026-01-02\nCurrent location: Brest[e~[\n]~b]user\nA[e~[\n"
        ']~b]ai\n\n<minimax:tool_call>\n<invoke name="f">\n</invoke>\n<invoke name="g">\n'
        '<parameter name="o">{"k": "ü<"}</parameter>\n<parameter name="t">a<b>&\n</parameter>\n</invoke>\n'
        "</minimax:tool_call>[e~[\n"
        "]~b]tool\n<response>one</response>\n<response>two\n</response>[e~[\n"
    )


def test_m2_identity_and_merged_system_messages() -> None:
    assert (
        "]~b]system\nI am X.[e~["
        in M2.render([user("A")], template_kwargs={"model_identity": "I am X."}).text
    )
    merged = [{"role": "developer", "content": "one"}, {"role": "system", "content": "two"}, user("A")]
    assert M2.render(merged).text.startswith("]~!b[]~b]system\none\n\ntwo[e~[\n]~b]user")


def test_m2_missing_tool_result_is_a_warning_and_thinking_off_closes_the_thought() -> None:
    messages = [user("A"), {"role": "assistant", "content": "", "tool_calls": [call("f", {})]}, user("B")]
    prompt = M2.render(messages, template_kwargs={"enable_thinking": False})
    assert prompt.text.endswith("]~b]ai\n<think>\n</think>\n\n")
    assert len(prompt.warnings) == 2
    assert prompt.warnings[0].startswith("messages[1].tool_calls[0]")


# ---- M3 ----------------------------------------------------------------------------------------------------

IDENTITY = (
    "Your model version is MiniMax-M3, developed by MiniMax. Knowledge cutoff: January 2026. Founded in "
    "early 2022, MiniMax is a global AI foundation model company committed to advancing the frontiers of AI "
    "towards AGI."
)
BASE = (
    "You have a thinking capability that allows you to reason step by step before responding. When thinking "
    "is enabled, wrap your reasoning in <mm:think></mm:think> tags before your response. When thinking is "
    "disabled, begin your response directly after the </mm:think> prefix. When thinking is adaptive, decide "
    "on your own whether to think for the current turn."
)
MODES = {
    "enabled": "Current thinking mode: enabled. You MUST think step by step before every response, including "
    "after receiving function/tool results.\n",
    "disabled": "Current thinking mode: disabled. Do not output any thinking process.\n",
    "adaptive": "Current thinking mode: adaptive. You are encouraged to think for complex decision-making, "
    "multi-step reasoning, or when analyzing function/tool results.\n",
    "other": "",
}
OPENERS = {"enabled": "<mm:think>", "disabled": "</mm:think>", "adaptive": "", "other": ""}


def m3_head(mode: str, root: str = IDENTITY, developer: str = "You are a helpful assistant.") -> str:
    return (
        f"]~!b[]~b]system\n{root}\n\n<thinking_instructions>\n{BASE}\n{MODES[mode]}</thinking_instructions>[e~[\n"
        f"]~b]developer\n{developer}[e~[\n"
    )


@pytest.mark.parametrize("mode", MODES)
def test_m3_modes(mode: str) -> None:
    prompt = M3.render([user("Hi")], template_kwargs={"thinking_mode": mode})
    assert prompt.text == m3_head(mode) + "]~b]user\nHi[e~[\n]~b]ai\n" + OPENERS[mode]


def test_m3_default_mode_and_enable_thinking() -> None:
    def tail(**kwargs: Any) -> str:
        return M3.render([user("Hi")], template_kwargs=kwargs).text.removeprefix("]~!b[")

    assert tail() == m3_head("adaptive").removeprefix("]~!b[") + "]~b]user\nHi[e~[\n]~b]ai\n"
    assert tail(enable_thinking=True) == tail(thinking_mode="enabled")
    assert tail(enable_thinking=False) == tail(thinking_mode="disabled")
    assert tail(enable_thinking=False, thinking_mode="enabled") == tail(thinking_mode="enabled")


def test_m3_image_turn() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
        {"role": "assistant", "content": "A harbour."},
        user("Which one?"),
    ]
    prompt = M3.render(messages, template_kwargs={"thinking_mode": "enabled"}, allow_media=True)
    assert prompt.text == m3_head("enabled") + (
        "]~b]user\nWhat is this?]<]image[>[[e~[\n]~b]ai\n</mm:think>A harbour.[e~[\n"
        "]~b]user\nWhich one?[e~[\n]~b]ai\n<mm:think>"
    )


M3_CALL = (
    f"]~b]ai\n<mm:think>Two stops.</mm:think>Planning.{NS}<tool_call>\n"
    f'{NS}<invoke name="plan_trip">{NS}<stops>{NS}<item>{NS}<name>Bergen{NS}</name>{NS}<nights>2{NS}</nights>'
    f"{NS}</item>{NS}</stops>{NS}<opts>{NS}<car>false{NS}</car>{NS}</opts>{NS}</invoke>\n"
    f"{NS}</tool_call>[e~[\n"
    ']~b]tool\n<response>{"ok": true}</response>[e~[\n'
)


def test_m3_call_and_result() -> None:
    arguments = {"stops": [{"name": "Bergen", "nights": 2}], "opts": {"car": False, "absent": None}}
    messages = [
        {"role": "root", "content": "I am root."},
        {"role": "developer", "content": "Be brief."},
        user("Go"),
        {
            "role": "assistant",
            "content": "<mm:think>Two stops.</mm:think>Planning.",
            "tool_calls": [call("plan_trip", json.dumps(arguments))],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": '{"ok": '}, "true}"]},
    ]
    text = M3.render(messages, add_generation_prompt=False).text
    assert text == m3_head("adaptive", "I am root.", "Be brief.") + "]~b]user\nGo[e~[\n" + M3_CALL


def test_m3_tools_block() -> None:
    example = (
        f'{NS}<tool_call>\n{NS}<invoke name="tool-name-1">{NS}<param-1>value-1{NS}</param-1>{NS}<param-2>'
        f"{NS}<item>{NS}<key-a>val-a{NS}</key-a>{NS}<key-b>val-b{NS}</key-b>{NS}</item>{NS}</param-2>{NS}</invoke>\n"
        f'{NS}<invoke name="tool-name-2">{NS}<param-1>value-1{NS}</param-1>{NS}</invoke>\n{NS}</tool_call>'
    )
    developer = (
        "You are a helpful assistant.\n\n# Tools\nYou may call one or more tools to assist with the user "
        "query.\nHere are the tools available in JSONSchema format:\n\n<tools>\n"
        f"<tool>{json.dumps(TIDE['function'])}</tool>\n</tools>\n\n"
        f"To call tools, wrap all invocations in a single {NS}<tool_call>{NS}</tool_call> block. Parameter "
        "values containing nested objects or arrays are recursively expanded into XML elements. Example:\n\n"
        + example
    )
    text = M3.render([user("Hi")], tools=[TIDE]).text
    assert text == m3_head("adaptive", developer=developer) + "]~b]user\nHi[e~[\n]~b]ai\n"


def test_demo_template_and_reference_template_agree() -> None:
    demo = ChatTemplate.from_checkpoint(DEMO, markers=MARKERS)
    messages = [
        {"role": "system", "content": "S"},
        user("A"),
        {
            "role": "assistant",
            "reasoning_content": "r",
            "content": "b",
            "tool_calls": [call("f", {"x": [1, None]})],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "assistant", "content": "<mm:think>q</mm:think>z"},
        user("C"),
    ]
    for mode in ("enabled", "disabled", "adaptive"):
        kwargs = {"thinking_mode": mode}
        ours = M3.render(messages, tools=[TIDE], template_kwargs=kwargs)
        assert demo.render(messages, tools=[TIDE], template_kwargs=kwargs).hidden == ours.hidden


# ---- any template ------------------------------------------------------------------------------------------


def test_continue_final_message() -> None:
    messages = [user("Hi"), {"role": "assistant", "content": "</mm:think> One"}]
    messages[1]["reasoning_content"] = ""
    assert M3.render(messages, continue_final_message=True).text.endswith(
        "]~b]ai\n</mm:think></mm:think> One"
    )
    with pytest.raises(ChatTemplateError, match="continue_final_message"):
        M3.render([user("Hi")], continue_final_message=True)


@pytest.mark.parametrize("start", ["[", "e", "~[", "[e~["])
def test_a_continued_message_is_not_looked_for_in_the_end_of_its_turn(start: str) -> None:
    for template in (M2, M3):
        prompt = template.render(
            [user("Hi"), {"role": "assistant", "content": start}], continue_final_message=True
        )
        assert prompt.text.endswith((f"]~b]ai\n{start}", f"]~b]ai\n</mm:think>{start}"))


def test_template_sees_what_the_caller_wrote() -> None:
    """Common idioms of other templates, on text full of markers."""
    source = (
        "{% set c = messages[0].content %}"
        "{{ '</mm:think>' in c }} {{ c.startswith('<mm:think>') }} {{ c | length }} {{ c | trim == c }} "
        "{{ c.split('</mm:think>')[-1] | upper }} {{ {'a': c} | tojson }} {{ [c, 'z'] | join('-') }} "
        "{% for part in c.split('</mm:think>') %}{{ loop.index ~ part }}{% endfor %}"
    )
    text = "<mm:think>é</mm:think>b"
    prompt = ChatTemplate(source, markers=MARKERS).render([user(text)])
    assert prompt.text == (f'True True {len(text)} True B {{"a": "{text}"}} {text}-z 1<mm:think>é2b')
    assert "mm:" not in prompt.hidden


def test_template_globals_and_whitespace() -> None:
    source = (
        "{% if true %}\nx{{ bos_token }}\n    {% endif %}\n"
        "{{ strftime_now('%Y') | int > 2000 }}{{ [1.5, 'é</'] | tojson }}"
    )
    template = ChatTemplate(source, markers=MARKERS, variables={"bos_token": "]~!b["})
    assert template.render([user("A")]).text == 'x]~!b[\nTrue[1.5, "é</"]'


def test_template_faults_name_the_messages() -> None:
    for source in (
        "{{ raise_exception('no ' ~ messages[0].content) }}",
        "{{ messages[3].content.x }}",
        "{{ 1 // 0 }}",
    ):
        with pytest.raises(ChatTemplateError, match=r"^messages: the chat template refuses them") as raised:
            ChatTemplate(source, markers=MARKERS).render([user("way")])
        assert raised.value.param == "messages"
    with pytest.raises(ChatTemplateError, match="no way"):
        ChatTemplate("{{ raise_exception('no ' ~ messages[0].content) }}", markers=MARKERS).render(
            [user("way")]
        )
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate("{% if %}", markers=MARKERS)


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].content.__class__() }}"],
)
def test_sandbox_holds(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"unsafe|not safely"):
        ChatTemplate(source, markers=MARKERS).render([user("A")])


def test_output_is_bounded() -> None:
    template = ChatTemplate(
        "{% for i in range(100) %}0123456789{% endfor %}", markers=MARKERS, max_output_chars=999
    )
    with pytest.raises(ChatTemplateError, match="exceeds 999 characters"):
        template.render([user("A")])


def test_sources_and_families(tmp_path: Path) -> None:
    assert detect_family(reference_template("m2")) == "m2"
    assert detect_family(reference_template("m3")) == "m3"
    assert detect_family(MARKERS) == "m3"
    assert detect_family(["<minimax:tool_call>"]) == "m2"
    assert detect_family("{{ messages }}") is None
    assert ChatTemplate.from_checkpoint(tmp_path, markers=MARKERS).source == reference_template("m3")
    with pytest.raises(ValueError, match="has neither"):
        ChatTemplate.from_checkpoint(tmp_path, markers=[])
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert ChatTemplate.from_checkpoint(tmp_path, markers=MARKERS).source == "one"
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "two"}]}))
    assert ChatTemplate.from_checkpoint(tmp_path, markers=MARKERS).source == "two"
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match="must be a string"):
        ChatTemplate.from_checkpoint(tmp_path, markers=MARKERS)
    (tmp_path / "chat_template.jinja").write_text("three")
    assert ChatTemplate.from_checkpoint(tmp_path, markers=MARKERS).source == "three"


# ---- refused conversations ---------------------------------------------------------------------------------

ASKED = {"role": "assistant", "content": "", "tool_calls": [call("f", {}, "c1"), call("g", {}, "c2")]}


def result(call_id: str | None, text: str = "r") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (["x"], "messages[0]"),
        ([{"role": "boss", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([user("a"), {"role": "system", "content": "late"}], "messages[1].role"),
        ([user("a"), {"role": "root", "content": "late"}], "messages[1].role"),
        ([user("a"), {"role": "user", "content": "x", "tool_calls": [1]}], "messages[1].tool_calls"),
        ([{"role": "assistant", "content": "x", "tool_calls": "c"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"function": {}}]}],
            "messages[0].tool_calls[0].function.name",
        ),
        (
            [{"role": "assistant", "tool_calls": [call("f", "[1]")]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            [{"role": "assistant", "tool_calls": [call("f", '{"a": NaN}')]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "assistant", "content": "x", "reasoning": 1}], "messages[0].reasoning"),
        (
            [{"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}],
            "messages[0].reasoning",
        ),
        (
            [{"role": "assistant", "content": "x", "reasoning_details": [{}]}],
            "messages[0].reasoning_details[0].text",
        ),
        ([user("a"), result("c1")], "messages[1]"),
        ([ASKED, result("c3"), result("c2")], "messages[1].tool_call_id"),
        ([ASKED, result("c1"), result("c1")], "messages[2].tool_call_id"),
        ([ASKED, result(None), result(None), result(None)], "messages[3]"),
        ([ASKED, result("c2")], "messages[0].tool_calls[0]"),
        ([ASKED, user("b")], "messages[0].tool_calls[0]"),
    ],
)
def test_bad_conversation_is_refused_with_its_path(messages: list[Any], param: str) -> None:
    with pytest.raises(ChatTemplateError, match="^" + re.escape(param) + ":") as raised:
        M3.render(messages)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("role", "words"),
    [("system", "system is allowed only before the"), ("root", "root is allowed only as the first message")],
)
def test_late_instructions_are_refused_in_a_sentence(role: str, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=words):
        M3.render([user("a"), {"role": role, "content": "late"}])


def test_other_refusals() -> None:
    with pytest.raises(ChatTemplateError, match="text only") as raised:
        M2.render([{"role": "user", "content": [{"type": "image_url"}]}], allow_media=True)
    assert raised.value.code == "media_not_supported"
    with pytest.raises(ChatTemplateError, match=r"messages\[0\]\.role"):
        M2.render([{"role": "root", "content": "x"}])
    with pytest.raises(ChatTemplateError, match=r"chat_template_kwargs\.tools"):
        M3.render([user("a")], template_kwargs={"tools": []})
    for tools, path in (([{}], "function"), ([{"function": {}}], "function.name")):
        with pytest.raises(ChatTemplateError, match=rf"tools\[0\]\.{path}:"):
            M3.render([user("a")], tools=tools)


def test_accepted_oddities() -> None:
    asked = {"role": "assistant", "tool_calls": [call("f", "")]}
    old = [user("a"), asked, {"role": "function", "name": "f", "content": "r"}]
    assert "<response>r</response>" in M3.render(old).text
    asked_before = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
    assert M3.render([old[0], asked_before, old[2]]) == M3.render(old)
    assert M3.render([user("a"), asked]).text.count("<response>") == 0
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    said = M3.render([user("a"), {"role": "assistant", "content": "No."}, user("b")])
    assert M3.render([user("a"), refusal, user("b")]).text == said.text
    assert M3.render([user("a"), refused, user("b")]).text == said.text
    swapped = M3.render([ASKED, result("c2", "two"), result("c1", "one")]).text
    assert "<response>one</response>\n<response>two</response>" in swapped
