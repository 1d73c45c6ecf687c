"""POST /v1/messages and count_tokens, driven by the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from server.helpers import (
    ARGUMENTS,
    CALL,
    EOS,
    MODEL,
    NS,
    PARAMETERS,
    TOKENIZER,
    ScriptedEngine,
    Server,
    serving,
)

PATH = "/v1/messages"
USER: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
TOOLS: list[Any] = [
    {"name": "get_weather", "description": "The weather of a city.", "input_schema": PARAMETERS}
]


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


async def events_of(server: Server, **fields: Any) -> list[dict[str, Any]]:
    return await server.events(PATH, {"model": MODEL, "max_tokens": 100, "messages": USER, **fields})


async def test_input_of_a_call_is_passed_on_as_it_was_read() -> None:
    """Neither the digits of a number nor the depth of a list are limited by how Python reads JSON."""
    days = "7" * 5000
    engine = ScriptedEngine(CALL.replace(">3", f">{days}"), max_model_len=16384, num_blocks=256)
    engine.tokens_per_step = 1000
    async with serving(engine) as server:
        body = {"model": MODEL, "max_tokens": 8000, "messages": USER, "tools": TOOLS}
        async with server.http.post(PATH, json=body) as response:
            assert response.status == 200
            assert f'"days": {days}' in (await response.text()).replace('"days":7', '"days": 7')


async def test_tool_loop_of_the_client_goes_on_without_its_threads() -> None:
    @anthropic.beta_async_tool
    async def get_weather(city: str, days: int) -> str:
        """The weather of a city."""
        return f"rain in {city} for {days} days"

    answers = iter([CALL, "It rains."])
    engine = ScriptedEngine(lambda _: [*TOKENIZER.encode(next(answers)), EOS])
    async with serving(engine) as server, client_of(server) as client:
        loop = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=200, messages=USER, tools=[get_weather]
        )
        last = await loop.until_done()
        assert last.content[0].text == "It rains."
        prompt = server.prompt()
        assert "Weather in Oslo?" in prompt
        assert '<response>rain in Os"lo for 3 days</response>' in prompt


async def test_text_and_usage() -> None:
    async with serving(ScriptedEngine("It rains.")) as server, client_of(server) as client:
        answer = await client.messages.create(model=MODEL, max_tokens=50, messages=USER, system="Be brief.")
        assert answer.id.startswith("msg_")
        assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
        assert [block.model_dump(exclude_none=True) for block in answer.content] == [
            {"type": "text", "text": "It rains."}
        ]
        assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
        (sent,) = server.engine.submitted
        assert sent.params.max_tokens == 50
        assert answer.usage.input_tokens + 64 == len(sent.prompt_token_ids)
        assert answer.usage.cache_read_input_tokens == 64
        assert answer.usage.output_tokens == len(TOKENIZER.encode("It rains.")) + 1
        assert "Be brief." in server.prompt()
        assert answer._request_id


@pytest.mark.parametrize("tokens_per_step", [1, 3, 1000])
async def test_thinking_text_and_call(tokens_per_step: int) -> None:
    engine = ScriptedEngine(f"<mm:think>Need it.</mm:think>Checking.{CALL}")
    engine.tokens_per_step = tokens_per_step
    async with serving(engine) as server, client_of(server) as client:
        answer = await client.messages.create(model=MODEL, max_tokens=200, messages=USER, tools=TOOLS)
        async with client.messages.stream(model=MODEL, max_tokens=200, messages=USER, tools=TOOLS) as stream:
            streamed = await stream.get_final_message()
        for found in (answer, streamed):
            thought, text, call = found.content
            assert (thought.type, text.type, call.type) == ("thinking", "text", "tool_use")
            assert (thought.thinking, text.text) == ("Need it.", "Checking.")
            assert server.state.signer.wrote(thought.thinking, thought.signature)
            assert call.id.startswith("toolu_")
            assert (call.name, call.input) == ("get_weather", ARGUMENTS)
            assert found.stop_reason == "tool_use"
        assert streamed.usage.output_tokens == answer.usage.output_tokens
        assert streamed.usage.input_tokens == answer.usage.input_tokens


async def test_order_of_events() -> None:
    async with serving(ScriptedEngine(f"<mm:think>Hm.</mm:think>Yes.{CALL}")) as server:
        events = await events_of(server, tools=TOOLS)
    kinds = []
    for event in events:
        kind = event.get("delta", {}).get("type") or event["type"]
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    assert kinds == [
        *("message_start", "content_block_start", "thinking_delta", "signature_delta", "content_block_stop"),
        *("content_block_start", "text_delta", "content_block_stop"),
        *("content_block_start", "input_json_delta", "content_block_stop", "message_delta", "message_stop"),
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["cache_read_input_tokens"] == 64
    opened = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in opened] == [0, 1, 2]
    assert opened[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert opened[2]["content_block"]["input"] == {}
    pieces = [e["delta"]["partial_json"] for e in events if e.get("delta", {}).get("partial_json")]
    assert json.loads("".join(pieces)) == ARGUMENTS


async def test_stop_reasons() -> None:
    async with serving(ScriptedEngine("one two three")) as server, client_of(server) as client:
        cut = await client.messages.create(model=MODEL, max_tokens=1, messages=USER)
        assert cut.stop_reason == "max_tokens"
        stopped = await client.messages.create(
            model=MODEL, max_tokens=50, messages=USER, stop_sequences=["two"]
        )
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "two")
        assert stopped.content[0].text == "one "
        events = await events_of(server, stop_sequences=["two"])
        assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "two"}


async def test_call_cut_by_length_is_left_out() -> None:
    async with serving(ScriptedEngine(CALL)) as server, client_of(server) as client:
        limit = len(TOKENIZER.encode(CALL[: CALL.index("days")]))
        answer = await client.messages.create(model=MODEL, max_tokens=limit, messages=USER, tools=TOOLS)
        assert (answer.content, answer.stop_reason) == ([], "max_tokens")
        async with client.messages.stream(
            model=MODEL, max_tokens=limit, messages=USER, tools=TOOLS
        ) as stream:
            cut = await stream.get_final_message()
        assert cut.stop_reason == "max_tokens"
        assert NS not in str(cut.content)


async def test_empty_answer() -> None:
    async with serving(ScriptedEngine("")) as server:
        events = await events_of(server)
        assert [e["type"] for e in events] == ["message_start", "message_delta", "message_stop"]


async def test_answer_sent_back_renders_as_chat_would() -> None:
    """History in the blocks of this API gives the same prompt as the same history in chat form."""
    async with serving(ScriptedEngine(f"<mm:think>Need it.</mm:think>Checking.{CALL}")) as server:
        body = {"model": MODEL, "max_tokens": 200, "tools": TOOLS}
        _, answer = await server.post(PATH, {**body, "messages": USER})
        result = {"type": "tool_result", "tool_use_id": answer["content"][2]["id"], "content": "rain"}
        said = {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}}
        status, second = await server.post(
            PATH,
            {
                **body,
                "system": [{"type": "text", "text": "S"}],
                "messages": [
                    *USER,
                    {"role": "assistant", "content": answer["content"]},
                    {"role": "user", "content": [result, said]},
                ],
            },
        )
        assert status == 200
        assert second["mmx"]["warnings"] == []
        ours = server.engine.submitted[-1].prompt_token_ids
        function = {
            "name": "get_weather",
            "description": TOOLS[0]["description"],
            "parameters": TOOLS[0]["input_schema"],
        }
        call = {
            "id": "c",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)},
        }
        await server.chat(
            messages=[
                {"role": "system", "content": "S"},
                *USER,
                {"role": "assistant", "content": "Checking.", "reasoning": "Need it.", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "rain"},
                {"role": "user", "content": "And?"},
            ],
            tools=[{"type": "function", "function": function}],
        )
        assert ours == server.engine.submitted[-1].prompt_token_ids


async def test_forms_of_messages() -> None:
    async with serving() as server:
        body = {
            "model": MODEL,
            "max_tokens": 5,
            "messages": [
                {"role": "system", "content": "One."},
                {"role": "user", "content": "a"},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "text", "data": "b", "media_type": "text/plain"},
                        }
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "forged"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "is_error": True,
                            "content": [{"type": "text", "text": "no such city"}],
                        }
                    ],
                },
                {"role": "system", "content": "Two."},
                {"role": "assistant", "content": "It is"},
            ],
            "stop": "x",
        }
        status, answer = await server.post(PATH, body)
        assert status == 200, answer
        unknown, first, second = answer["mmx"]["warnings"]
        assert unknown == "unknown field stop was ignored"
        assert first == "messages[5]: a system message inside the conversation is read as the user's"
        assert second == "messages[3].content[0].signature is not of this server"
        prompt = server.prompt()
        assert "]~b]user\nab[e~[" in prompt
        assert "<response>Error: no such city</response>" in prompt
        assert prompt.endswith("It is")


@pytest.mark.parametrize(
    ("fields", "mode", "num_warnings"),
    [
        ({}, "adaptive", 0),
        ({"thinking": {"type": "adaptive"}}, "adaptive", 0),
        ({"thinking": {"type": "disabled"}}, "disabled", 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "enabled", 0),
        ({"output_config": {"effort": "high"}}, "enabled", 0),
    ],
)
async def test_thinking_modes(fields: dict[str, Any], mode: str, num_warnings: int) -> None:
    async with serving(ScriptedEngine("</mm:think>Yes.")) as server:
        body = {"model": MODEL, "max_tokens": 1500, "messages": USER, **fields}
        status, answer = await server.post(PATH, body)
        assert status == 200, answer
        assert answer["mmx"]["thinking_mode"] == mode
        assert len(answer["mmx"]["warnings"]) == num_warnings


async def test_beta_client() -> None:
    async with serving(ScriptedEngine("Yes.")) as server, client_of(server) as client:
        answer = await client.beta.messages.create(
            model=MODEL, max_tokens=5, messages=USER, betas=["interleaved-thinking-2025-05-14"]
        )
        assert answer.content[0].text == "Yes."


async def test_count_tokens() -> None:
    async with serving() as server, client_of(server) as client:
        for fields in ({}, {"tools": TOOLS, "system": "S"}, {"thinking": {"type": "disabled"}}):
            counted = await client.messages.count_tokens(model=MODEL, messages=USER, **fields)
            await client.messages.create(model=MODEL, max_tokens=5, messages=USER, **fields)
            assert counted.input_tokens == len(server.engine.submitted[-1].prompt_token_ids)
        assert len(server.engine.submitted) == 3
