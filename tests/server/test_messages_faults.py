"""/v1/messages when something is wrong: bad requests, full queues, engines and clients that fail."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

from mmx.protocol import Failed
from server.helpers import MODEL, ScriptedEngine, serving
from server.test_messages_api import PATH, TOOLS, USER, client_of, events_of

IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
RESULT = {"type": "tool_result", "tool_use_id": "x", "content": "r"}
CALLED = [
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Well."},
            {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        ],
    }
]
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
    (
        {"messages": [*USER, *CALLED, {"role": "user", "content": [RESULT]}]},
        "messages[2].content[0].tool_use_id: 'x' is no call",
    ),
    ({"messages": [*USER, *CALLED, *USER]}, "messages[1].content[1]: has no tool_result block"),
    ({"messages": [*USER, {"role": "assistant", "content": ""}]}, "messages must end with the user"),
    ({"system": [IMAGE]}, "system[0] must be a text block"),
    ({"temperature": 3}, "temperature"),
    ({"top_k": -3}, "top_k"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences takes at most 16"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type must be custom"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema is required"),
    ({"tools": [{**TOOLS[0], "name": "a b"}]}, "tools[0].name must be"),
    (
        {"tools": [{"name": "f", "strict": True, "input_schema": {"type": "object", "if": {}}}]},
        "tools[0].input_schema.if: the keyword if can not be enforced",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "which is not in tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name is required"),
    ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "tool_choice.type must be"),
    ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens must be at least 1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "less than max_tokens"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type must be"),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display is not supported"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort must be"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is required"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"uniqueItems": True, "items": {}}}}},
        "output_config.format.schema.uniqueItems: the keyword uniqueItems can not be enforced",
    ),
    ({"mcp_servers": [{}]}, "mcp_servers is not supported"),
    ({"container": "c"}, "container is not supported"),
    (
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "context_management is not supported",
    ),
    ({"compaction": {}}, "compaction is not supported"),
    ({"thread": {"type": "create"}}, "thread is not supported"),
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
        keeps = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
        off = {"model": MODEL, "max_tokens": 5, "messages": USER, "mcp_servers": []}
        assert (await server.post(PATH, {**off, "context_management": keeps}))[0] == 200
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
        assert event["error"]["message"] == "the logits hold NaN"
        assert event["error"]["details"] == {"error_code": "numerical_error"}


async def test_queue_full_is_a_rate_limit() -> None:
    engine = ScriptedEngine("word " * 50, step_seconds=0.05, max_num_seqs=1, max_num_queued_reqs=0)
    async with serving(engine) as server, client_of(server) as client:
        first = asyncio.ensure_future(client.messages.create(model=MODEL, max_tokens=50, messages=USER))
        await engine.started()
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
        await engine.started()
        engine.abort([engine.submitted[0].request_id])
        events = await waiting
        assert events[-1]["error"]["message"] == "the request was stopped before its end"


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves(stream: bool) -> None:
    engine = ScriptedEngine("word " * 200, step_seconds=0.02)
    async with serving(engine) as server:
        body = {"model": MODEL, "max_tokens": 300, "messages": USER, "stream": stream}
        await server.ask_and_leave(PATH, body)


async def test_signatures_of_replicas_agree() -> None:
    async with serving(None, "--thinking-signature-key", "secret") as one:
        async with serving(None, "--thinking-signature-key", "secret") as two, serving() as other:
            signature = one.state.signer.sign("thought")
            assert two.state.signer.wrote("thought", signature)
            assert not two.state.signer.wrote("thoughts", signature)
            assert not other.state.signer.wrote("thought", signature)
        async with one.http.get("/server_info") as response:
            assert "secret" not in await response.text()
