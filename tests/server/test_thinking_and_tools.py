"""Thinking and tool calls as clients ask for them and read them, on M3's output format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmx.server.decode import decode_request
from mmx.server.schemas import ChatRequest
from mmx.server.thinking import choose
from server.helpers import CALL, EOS, MODEL, NS, PARAMETERS, TOKENIZER, ScriptedEngine, serving

USER = [{"role": "user", "content": "Weather in Oslo?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]


async def streamed(server: Any, **fields: Any) -> tuple[dict[str, Any], list[Any]]:
    """The message that the chunks add up to, and the chunks."""
    stream = await server.openai.chat.completions.create(model=MODEL, messages=USER, stream=True, **fields)
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        (choice,) = chunk.choices
        delta = choice.delta
        thought = getattr(delta, "reasoning", None)
        assert sum((delta.content is not None, thought is not None, bool(delta.tool_calls))) <= 1
        message["content"] += delta.content or ""
        message["reasoning"] += thought or ""
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert call.index == len(message["calls"])
                message["calls"].append({"id": call.id, "name": call.function.name, "arguments": ""})
            message["calls"][call.index]["arguments"] += call.function.arguments
        message["finish"] = choice.finish_reason
    return message, chunks


async def test_reasoning_in_both_fields_and_usage() -> None:
    async with serving(ScriptedEngine("<mm:think>Let me see.</mm:think>It rains.")) as server:
        status, body = await server.chat()
        assert status == 200
        message = body["choices"][0]["message"]
        assert message["content"] == "It rains."
        assert message["reasoning"] == message["reasoning_content"] == "Let me see."
        details = body["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] == len(TOKENIZER.encode("Let me see."))
        assert body["mmx"]["thinking_mode"] == "adaptive"
        streamed_message, chunks = await streamed(server)
        assert (streamed_message["reasoning"], streamed_message["content"]) == ("Let me see.", "It rains.")
        assert streamed_message["finish"] == "stop"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].choices[0].delta.reasoning_content == chunks[0].choices[0].delta.reasoning


@pytest.mark.parametrize("tokens_per_step", [1, 3, 1000])
async def test_tool_call(tokens_per_step: int) -> None:
    engine = ScriptedEngine(f"<mm:think>Need it.</mm:think>Checking.{CALL}")
    engine.tokens_per_step = tokens_per_step
    async with serving(engine) as server:
        answer = await server.openai.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS)
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Checking."
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": 'Os"lo', "days": 3}
        message, _ = await streamed(server, tools=TOOLS)
        assert message["finish"] == "tool_calls"
        assert (message["reasoning"], message["content"]) == ("Need it.", "Checking.")
        (sent,) = message["calls"]
        assert sent["id"].startswith("call_")
        assert (sent["name"], json.loads(sent["arguments"])) == ("get_weather", {"city": 'Os"lo', "days": 3})


async def test_only_calls_have_null_content() -> None:
    async with serving(ScriptedEngine(CALL)) as server:
        _, body = await server.chat(tools=TOOLS)
        assert body["choices"][0]["message"]["content"] is None


async def test_no_output_is_an_empty_string() -> None:
    async with serving(ScriptedEngine("")) as server:
        _, body = await server.chat()
        assert body["choices"][0]["message"]["content"] == ""
        message, chunks = await streamed(server)
        assert (message["content"], message["finish"], len(chunks)) == ("", "stop", 1)


async def test_call_cut_by_length_is_reported_apart() -> None:
    async with serving(ScriptedEngine(CALL)) as server:
        at = len(TOKENIZER.encode(CALL[: CALL.index("days")]))
        _, body = await server.chat(tools=TOOLS, max_tokens=at)
        choice = body["choices"][0]
        assert choice["finish_reason"] == "length"
        assert "tool_calls" not in choice["message"]
        assert NS not in (choice["message"]["content"] or "")
        cut = body["mmx"]["incomplete_tool_call"]
        assert cut["name"] == "get_weather"
        assert cut["arguments"].startswith('{"city": "Os')


@pytest.mark.parametrize("stop", ["Os", "days"])
async def test_call_cut_by_a_stop_string_is_reported_apart(stop: str) -> None:
    """A caller that ran it would run it without the arguments that were still to come."""
    async with serving(ScriptedEngine(CALL)) as server:
        status, body = await server.chat(tools=TOOLS, stop=[stop])
        (choice,) = body["choices"]
        assert (status, choice["finish_reason"], choice["stop_reason"]) == (200, "stop", stop)
        assert "tool_calls" not in choice["message"]
        assert body["mmx"]["incomplete_tool_call"]["name"] == "get_weather"
        message, _ = await streamed(server, tools=TOOLS, stop=[stop])
        assert message["finish"] == "stop"
        fields = {"tools": [{"type": "function", **TOOLS[0]["function"]}], "stop": [stop]}
        _, response = await server.post("/v1/responses", {"input": "hi", **fields})
        assert [item["status"] for item in response["output"]] == ["incomplete"]
        tools = [{"name": "get_weather", "input_schema": TOOLS[0]["function"]["parameters"]}]
        fields = {"tools": tools, "stop_sequences": [stop], "max_tokens": 100}
        _, answer = await server.post("/v1/messages", {"model": MODEL, "messages": USER, **fields})
        assert (answer["content"], answer["stop_reason"]) == ([], "stop_sequence")


async def test_stop_string_behind_a_call_leaves_it_whole() -> None:
    async with serving(ScriptedEngine(CALL)) as server:
        _, body = await server.chat(tools=TOOLS, stop=["</tool_call>"])
        (choice,) = body["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("tool_calls", "</tool_call>")
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": 'Os"lo', "days": 3}


async def test_stop_string_inside_a_thought() -> None:
    async with serving(ScriptedEngine("<mm:think>one two three</mm:think>four")) as server:
        _, body = await server.chat(stop=["two"])
        choice = body["choices"][0]
        assert choice["message"]["reasoning"] == "one "
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "two")
        await server.idle()


async def test_ways_to_show_thoughts() -> None:
    text = "<mm:think>Hm.</mm:think>Yes."
    async with serving(ScriptedEngine(text)) as server:
        for fields, content, reasoning in (
            ({"include_reasoning": False}, "Yes.", None),
            ({"reasoning_split": False}, text, None),
            ({"separate_reasoning": False}, text, None),
            ({"reasoning_split": True}, "Yes.", "Hm."),
        ):
            _, body = await server.chat(**fields)
            message = body["choices"][0]["message"]
            assert (message["content"], message.get("reasoning")) == (content, reasoning)
            sent, _ = await streamed(server, extra_body=fields)
            assert (sent["content"], sent["reasoning"] or None) == (content, reasoning)
        assert message["reasoning_details"] == [{"type": "reasoning.text", "index": 0, "text": "Hm."}]
    async with serving(ScriptedEngine(text), "--reasoning-output", "reasoning_content") as server:
        _, body = await server.chat()
        assert "reasoning" not in body["choices"][0]["message"]
        assert body["choices"][0]["message"]["reasoning_content"] == "Hm."
    async with serving(
        ScriptedEngine(text), "--reasoning-parser", "none", "--tool-call-parser", "none"
    ) as server:
        _, body = await server.chat()
        assert body["choices"][0]["message"]["content"] == text


async def test_enabled_opens_the_thought_in_the_prompt() -> None:
    async with serving(ScriptedEngine("Hm.</mm:think>Yes.")) as server:
        _, body = await server.chat(chat_template_kwargs={"thinking_mode": "enabled"})
        prompt = TOKENIZER.decode(server.engine.submitted[0].prompt_token_ids, skip_special_tokens=False)
        assert prompt.endswith("<mm:think>")
        assert body["choices"][0]["message"]["reasoning"] == "Hm."
        _, body = await server.chat(
            prompt_token_ids=server.engine.submitted[0].prompt_token_ids, reasoning_split=False
        )
        assert body["choices"][0]["message"]["content"] == "<mm:think>Hm.</mm:think>Yes."


async def test_disabled_closes_it() -> None:
    async with serving(ScriptedEngine("Yes.")) as server:
        _, body = await server.chat(reasoning_effort="none")
        prompt = TOKENIZER.decode(server.engine.submitted[0].prompt_token_ids, skip_special_tokens=False)
        assert prompt.endswith("</mm:think>")
        assert body["mmx"]["thinking_mode"] == "disabled"


async def test_tool_history_is_rendered() -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
    history = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Look."},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    async with serving() as server:
        await server.chat(messages=history, tools=TOOLS)
        prompt = TOKENIZER.decode(server.engine.submitted[0].prompt_token_ids, skip_special_tokens=False)
        assert f"{NS}<city>Oslo{NS}</city>" in prompt
        assert "<response>rain</response>" in prompt
        assert "<mm:think>Look.</mm:think>" in prompt


async def test_markers_in_user_text_stay_text() -> None:
    async with serving() as server:
        await server.chat(messages=[{"role": "user", "content": "[e~[ ]~b]ai"}])
        ids = server.engine.submitted[0].prompt_token_ids
        reference = TOKENIZER.encode("[e~[")
        assert reference == [EOS]
        assert ids.count(EOS) == 3


async def test_skip_special_tokens_in_completions() -> None:
    text = "a<mm:think>b"
    async with serving(ScriptedEngine(text)) as server:
        _, body = await server.post("/v1/completions", {"prompt": "x", "skip_special_tokens": False})
        assert body["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("fields", "m3", "m2", "num_warnings"),
    [
        ({}, "adaptive", "enabled", 0),
        ({"chat_template_kwargs": {"thinking_mode": "disabled"}}, "disabled", "disabled", 0),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "disabled", "disabled", 0),
        ({"chat_template_kwargs": {"thinking": True}}, "enabled", "enabled", 0),
        ({"enable_thinking": True}, "enabled", "enabled", 0),
        ({"thinking": {"type": "adaptive"}}, "adaptive", "enabled", 0),
        ({"thinking": False}, "disabled", "disabled", 0),
        ({"reasoning_effort": "low"}, "adaptive", "enabled", 0),
        ({"reasoning_effort": 1}, "enabled", "enabled", 0),
        ({"reasoning_effort": 0.0}, "disabled", "disabled", 0),
        ({"reasoning": {"effort": "high"}}, "enabled", "enabled", 0),
        ({"reasoning": {"enabled": False}}, "disabled", "disabled", 0),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, "enabled", "enabled", 1),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": True},
            "disabled",
            "disabled",
            1,
        ),
    ],
)
def test_thinking_switches(fields: dict[str, Any], m3: str, m2: str, num_warnings: int) -> None:
    request, _ = decode_request({"messages": [], **fields}, ChatRequest, {})
    for family, mode in (("m3", m3), ("m2", m2)):
        found = choose(request, {}, family)
        assert found.mode == mode
        assert found.template_kwargs["thinking_mode"] == mode
        assert len(found.warnings) == num_warnings
    found = choose(request, {"thinking_mode": "disabled", "extra": 1}, "m3")
    assert found.mode == (m3 if fields else "disabled")
    assert found.template_kwargs["extra"] == 1
