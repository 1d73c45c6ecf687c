"""What can be done with a response afterwards, and what happens when something is wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from mmx.protocol import Failed
from mmx.server.responses_store import MAX_AGE_SECONDS
from server.helpers import MODEL, ScriptedEngine, check_error, serving
from server.test_responses_api import PATH, TOOLS, events_of

IMAGE = {"type": "input_image", "image_url": "https://example.org/x.png"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": ""}
USER = {"role": "user", "content": "a"}
THOUGHT = {"type": "reasoning", "summary": []}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
ERRORS: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
    ({"input": None}, (400, "invalid_type", "input")),
    ({"input": []}, (400, "empty_array", "input")),
    ({"input": [3]}, (400, "invalid_type", "input[0]")),
    ({"input": [{"role": "king", "content": "x"}]}, (400, "invalid_value", "input[0].role")),
    ({"input": [{"role": "user"}]}, (400, "invalid_type", "input[0].content")),
    (
        {"input": [{"role": "user", "content": [{"type": "smell"}]}]},
        (400, "invalid_value", "input[0].content[0].type"),
    ),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, (400, "media_not_supported", "input[0].content[0]")),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        (400, "media_not_supported", "input[0].content[0]"),
    ),
    (
        {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
        (400, "missing_required_parameter", "input[0].call_id"),
    ),
    ({"input": [USER, THOUGHT, {**CALL, "arguments": "{"}]}, (400, "invalid_value", "input[2].arguments")),
    ({"input": [USER, THOUGHT, CALL, USER]}, (400, "tool_call_mismatch", "input[2]")),
    (
        {
            "input": [
                {"role": "user", "content": "x"},
                {"type": "function_call_output", "call_id": "c", "output": ""},
            ]
        },
        (400, "tool_call_mismatch", "input[1]"),
    ),
    ({"input": [{"type": "item_reference", "id": "msg_0"}]}, (404, "not_found", "input[0]")),
    ({"model": "nobody"}, (404, "model_not_found", "model")),
    ({"max_output_tokens": 0}, (400, "invalid_value", "max_output_tokens")),
    ({"max_output_tokens": 5000}, (400, "context_length_exceeded", "max_output_tokens")),
    ({"input": "word " * 9000}, (400, "context_length_exceeded", "input")),
    ({"temperature": 3}, (400, "invalid_value", "temperature")),
    ({"stream_options": {}}, (400, "invalid_value", "stream_options")),
    ({"tools": [{"type": "web_search"}]}, (400, "unsupported_tool_type", "tools[0].type")),
    ({"tools": [{"type": "function"}]}, (400, "missing_required_parameter", "tools[0].name")),
    ({"tools": [{**TOOLS[0], "name": "a b"}]}, (400, "invalid_value", "tools[0].name")),
    (
        {"tools": [{**TOOLS[0], "strict": True, "parameters": {"type": "object", "not": {}}}]},
        (400, "unsupported_schema", "tools[0].parameters.not"),
    ),
    ({"tool_choice": "required"}, (400, "missing_required_parameter", "tools")),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}},
        (400, "unknown_tool", "tool_choice"),
    ),
    ({"text": {"format": {"type": "structural_tag"}}}, (400, "unsupported_parameter", "text.format")),
    (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "odd"}}}},
        (400, "invalid_schema", "text.format.schema.type"),
    ),
    ({"include": ["file_search_call.results"]}, (400, "unsupported_parameter", "include")),
    ({"top_logprobs": 2}, (400, "invalid_value", "top_logprobs")),
    ({"truncation": "auto"}, (400, "unsupported_parameter", "truncation")),
    ({"background": True, "store": False}, (400, "unsupported_combination", "background")),
    ({"background": True, "stream": True}, (400, "unsupported_combination", "background")),
    ({"conversation": "conv_1"}, (400, "unsupported_parameter", "conversation")),
    ({"max_tool_calls": 3}, (400, "unsupported_parameter", "max_tool_calls")),
    ({"prompt": {"id": "p"}}, (400, "unsupported_parameter", "prompt")),
    ({"priority": 3}, (400, "unsupported_parameter", "priority")),
    ({"reasoning": {"effort": "huge"}}, (400, "invalid_value", "reasoning.effort")),
    ({"thinking": {"budget_tokens": 0}}, (400, "invalid_value", "thinking.budget_tokens")),
    ({"previous_response_id": "resp_0"}, (404, "not_found", "previous_response_id")),
]


async def test_retrieve_and_delete() -> None:
    async with serving() as server:
        api = server.openai.responses
        answer = await api.create(model=MODEL, input="hi")
        found = await api.retrieve(answer.id)
        assert (found.output, found.status) == (answer.output, "completed")
        assert (await api.cancel(answer.id)).status == "completed"
        await api.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            await api.retrieve(answer.id)
        with pytest.raises(openai.NotFoundError):
            await api.delete(answer.id)
        hidden = await api.create(model=MODEL, input="hi", store=False)
        assert hidden.store is False
        with pytest.raises(openai.NotFoundError):
            await api.retrieve(hidden.id)
        status, body = await server.post(PATH, {"input": "x", "previous_response_id": hidden.id})
        check_error(status, body, (404, "not_found", "previous_response_id"))


async def test_store_is_bounded_in_number_and_age() -> None:
    async with serving(None, "--response-store-size", "2") as server:
        ids = [(await server.post(PATH, {"input": "x"}))[1]["id"] for _ in range(3)]
        assert [(await server.get(f"{PATH}/{i}"))[0] for i in ids] == [404, 200, 200]
        server.state.responses.get(ids[1], "id").expires -= MAX_AGE_SECONDS
        assert [(await server.get(f"{PATH}/{i}"))[0] for i in ids] == [404, 404, 200]
    async with serving(None, "--response-store-size", "0") as server:
        _, answer = await server.post(PATH, {"input": "x"})
        assert answer["store"] is False
        status, body = await server.post(PATH, {"input": "x", "store": True})
        check_error(status, body, (400, "unsupported_parameter", "store"))


async def test_background_and_cancel() -> None:
    engine = ScriptedEngine("word " * 100, step_seconds=0.01)
    async with serving(engine) as server:
        api = server.openai.responses
        answer = await api.create(model=MODEL, input="hi", background=True)
        assert (answer.status, answer.background, answer.output) == ("in_progress", True, [])
        assert (await api.retrieve(answer.id)).status == "in_progress"
        status, body = await server.post(PATH, {"input": "x", "previous_response_id": answer.id})
        check_error(status, body, (400, "invalid_value", "previous_response_id"))
        cancelled = await api.cancel(answer.id)
        assert cancelled.status == "cancelled"
        assert engine.aborted == [engine.submitted[0].request_id]
        await server.idle()
        engine.step_seconds = 0.0
        second = await api.create(model=MODEL, input="hi", background=True)
        await server.idle()
        finished = await api.retrieve(second.id)
        assert finished.status == "completed"
        assert finished.output_text == "word " * 100
        engine.step_seconds = 0.01
        third = await api.create(model=MODEL, input="hi", background=True)
        await api.delete(third.id)
        await server.idle()
        assert len(engine.aborted) == 2


async def test_cancel_of_a_stream() -> None:
    engine = ScriptedEngine("word " * 100, step_seconds=0.02)
    async with serving(engine) as server:
        reading = asyncio.ensure_future(events_of(server))
        await engine.started()
        (response_id,) = [s.response["id"] for s in server.state.responses._stored.values()]
        await server.openai.responses.cancel(response_id)
        events = await reading
        assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.incomplete", "cancelled")


async def test_failure_of_the_engine() -> None:
    failed = Failed(request_id="", message="the logits hold NaN", code="numerical_error", status=500)
    async with serving(ScriptedEngine(lambda _: failed)) as server:
        status, body = await server.post(PATH, {"input": "x"})
        check_error(status, body, (500, "numerical_error", None))
        expected = {"code": "numerical_error", "message": "the logits hold NaN"}
        _, answer = await server.post(PATH, {"input": "x", "background": True})
        await server.idle()
        _, found = await server.get(f"{PATH}/{answer['id']}")
        assert (found["status"], found["error"]) == ("failed", expected)
        error, last = (await events_of(server))[-2:]
        assert (error["type"], error["code"]) == ("error", "numerical_error")
        assert last["type"] == "response.failed"
        assert last["response"]["error"] == expected


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves(stream: bool) -> None:
    engine = ScriptedEngine("word " * 200, step_seconds=0.02)
    async with serving(engine) as server:
        await server.ask_and_leave(PATH, {"input": "x", "stream": stream})
        (stored,) = server.state.responses._stored.values()
        assert stored.response["status"] == "cancelled"


async def test_errors() -> None:
    async with serving() as server:
        for fields, expected in ERRORS:
            status, body = await server.post(PATH, {"input": "hi", **fields})
            check_error(status, body, expected)
        assert not server.engine.submitted
        async with server.http.get(f"{PATH}/resp_0?stream=true") as response:
            check_error(response.status, await response.json(), (400, "unsupported_parameter", "stream"))
