"""POST /v1/messages and count_tokens, driven by the official client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from mmx.protocol import Failed
from server.helpers import MODEL, TOKENIZER, ScriptedEngine, Server, serving

PATH = "/v1/messages"
USER: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
NS = "]<]minimax[>["
CALL = (
    f'{NS}<tool_call>\n{NS}<invoke name="get_weather">{NS}<city>Os"lo{NS}</city>{NS}<days>3{NS}</days>'
    f"{NS}</invoke>\n{NS}</tool_call>"
)
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    }
]
ARGUMENTS = {"city": 'Os"lo', "days": 3}


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


async def events_of(server: Server, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream as they are on the wire; the line of the type must agree with the data."""
    body = {"model": MODEL, "max_tokens": 100, "messages": USER, "stream": True, **fields}
    events = []
    async with server.http.post(PATH, json=body) as response:
        assert response.status == 200, await response.text()
        for block in (await response.text()).strip().split("\n\n"):
            name, data = block.strip().split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


def prompt_of(server: Server) -> str:
    ids = server.engine.submitted[-1].prompt_token_ids
    return TOKENIZER.decode(ids, skip_special_tokens=False)


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
        assert "Be brief." in prompt_of(server)
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
                {
                    "role": "assistant",
                    "content": "Checking.",
                    "reasoning": "Need it.",
                    "tool_calls": [call],
                },
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
        prompt = prompt_of(server)
        assert "]~b]user\nab[e~[" in prompt
        assert "<response>Error: no such city</response>" in prompt
        assert prompt.endswith("It is")


@pytest.mark.parametrize(
    ("fields", "mode", "num_warnings"),
    [
        ({}, "adaptive", 0),
        ({"thinking": {"type": "adaptive"}}, "adaptive", 0),
        ({"thinking": {"type": "disabled"}}, "disabled", 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "enabled", 1),
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


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
RESULT = {"type": "tool_result", "tool_use_id": "x", "content": "r"}
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens is required"),
    ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ({"max_tokens": 5000}, "maximum context length is 4096 tokens"),
    ({"model": None}, "model must be a string"),
    ({"messages": []}, "messages must hold at least one message"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "images and videos are not accepted"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages[0]"),
    ({"messages": [*USER, {"role": "user", "content": [RESULT]}]}, "messages[1].content[0]: tool_result"),
    (
        {"messages": [*USER, {"role": "assistant", "content": [{"type": "tool_use", "input": 3}]}]},
        "messages[1].content[0].input",
    ),
    ({"messages": [*USER, {"role": "assistant", "content": ""}]}, "messages must end with the user"),
    ({"system": [IMAGE]}, "system[0] must be a text block"),
    ({"temperature": 3}, "temperature"),
    ({"top_k": -3}, "top_k"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences takes at most 16"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type must be custom"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema is required"),
    ({"tools": [{**TOOLS[0], "name": "a b"}]}, "tools[0].name must be"),
    ({"tools": [{**TOOLS[0], "strict": True}]}, "strict is not supported"),
    ({"tools": TOOLS, "tool_choice": {"type": "any"}}, "tool_choice is not supported"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "which is not in tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name is required"),
    ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "tool_choice.type must be"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        "tool_choice.disable_parallel_tool_use is not supported",
    ),
    ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens must be at least 1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "less than max_tokens"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type must be"),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display is not supported"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort must be"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format is not supported"),
    ({"mcp_servers": [{}]}, "mcp_servers is not supported"),
    ({"container": "c"}, "container is not supported"),
]


async def test_errors() -> None:
    async with serving() as server:
        for fields, expected in ERRORS:
            body = {"model": MODEL, "max_tokens": 1500, "messages": USER, **fields}
            status, answer = await server.post(PATH, body)
            assert status == 400, (fields, answer)
            assert set(answer) == {"type", "error", "request_id"}
            assert answer["type"] == "error"
            assert answer["error"]["type"] == "invalid_request_error"
            assert expected in answer["error"]["message"], (fields, answer)
        assert not server.engine.submitted
        status, answer = await server.post(PATH, {"model": "m", "max_tokens": 1, "messages": USER})
        assert (status, answer["error"]["type"]) == (404, "not_found_error")
        async with server.http.get(PATH) as response:
            assert response.status == 405
            assert (await response.json())["type"] == "error"


async def test_errors_as_the_client_raises_them() -> None:
    async with serving(None, "--api-key", "k") as server, client_of(server) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model=MODEL, max_tokens=5, messages=USER)
        with_key = client.with_options(api_key="k")
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            await with_key.messages.create(
                model=MODEL, max_tokens=5, messages=USER, extra_body={"temperature": 3}
            )
        assert (await with_key.messages.create(model=MODEL, max_tokens=5, messages=USER)).content


async def test_failure_of_the_engine() -> None:
    failed = Failed(request_id="", message="the logits hold NaN", code="numerical_error", status=500)
    async with serving(ScriptedEngine(lambda _: failed)) as server:
        body = {"model": MODEL, "max_tokens": 5, "messages": USER}
        status, answer = await server.post(PATH, body)
        assert (status, answer["error"]["type"]) == (500, "api_error")
        (event,) = await events_of(server)
        assert event["error"] == {"type": "api_error", "message": "the logits hold NaN"}


async def test_queue_full_is_a_rate_limit() -> None:
    engine = ScriptedEngine("word " * 50, step_seconds=0.05, max_num_seqs=1, max_num_queued_reqs=0)
    async with serving(engine) as server, client_of(server) as client:
        first = asyncio.ensure_future(client.messages.create(model=MODEL, max_tokens=50, messages=USER))
        while not engine.submitted:
            await asyncio.sleep(0.005)
        with pytest.raises(anthropic.RateLimitError) as refused:
            await client.messages.create(model=MODEL, max_tokens=5, messages=USER)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        first.cancel()
        await server.idle()


async def test_ping_while_nothing_comes() -> None:
    engine = ScriptedEngine("Yes.", step_seconds=0.3)
    async with serving(engine, "--sse-keep-alive-interval", "0.1") as server:
        events = await events_of(server)
        assert events[0] == {"type": "ping"}
        assert events[-1] == {"type": "message_stop"}


async def test_aborted_by_the_server() -> None:
    engine = ScriptedEngine("word " * 100, step_seconds=0.02)
    async with serving(engine) as server:
        waiting = asyncio.ensure_future(events_of(server))
        while not engine.submitted:
            await asyncio.sleep(0.005)
        engine.abort([engine.submitted[0].request_id])
        events = await waiting
        assert events[-1]["error"]["message"] == "the request was stopped before its end"


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves(stream: bool) -> None:
    engine = ScriptedEngine("word " * 200, step_seconds=0.02)
    async with serving(engine) as server:
        body = {"model": MODEL, "max_tokens": 300, "messages": USER, "stream": stream}
        request = asyncio.ensure_future(server.http.post(PATH, json=body))
        while not engine.submitted:
            await asyncio.sleep(0.005)
        if stream:
            response = await request
            await response.content.readany()
            response.close()
        else:
            request.cancel()
        await server.idle()
        assert engine.aborted == [engine.submitted[0].request_id]


async def test_signatures_of_replicas_agree() -> None:
    async with serving(None, "--thinking-signature-key", "secret") as one:
        async with serving(None, "--thinking-signature-key", "secret") as two, serving() as other:
            signature = one.state.signer.sign("thought")
            assert two.state.signer.wrote("thought", signature)
            assert not two.state.signer.wrote("thoughts", signature)
            assert not other.state.signer.wrote("thought", signature)
        async with one.http.get("/server_info") as response:
            assert "secret" not in await response.text()
