"""10,000 broken requests: none may be answered with a 5xx, and the next good one is served."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from aiohttp import streams, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from mmx.server.messages_request import MessagesRequest
from mmx.server.responses_request import ResponsesRequest
from mmx.server.schemas import ChatRequest, CompletionRequest
from server.helpers import ScriptedEngine, Server, serving

NUM_BODIES = 10_000
FIELDS = {
    "/v1/chat/completions": ChatRequest.__struct_fields__,
    "/v1/messages": MessagesRequest.__struct_fields__,
    "/v1/messages/count_tokens": MessagesRequest.__struct_fields__,
    "/v1/responses": ResponsesRequest.__struct_fields__,
}
MESSAGES: dict[str, Any] = {
    "model": "mmx-demo",
    "max_tokens": 3,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "stop_sequences": ["x"],
    "stream": True,
}
RESPONSES: dict[str, Any] = {
    "input": [
        {"role": "developer", "content": "s"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "r"}]},
    ],
    "instructions": "i",
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "tool_choice": "auto",
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "text"}},
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    "top_logprobs": 1,
    "max_output_tokens": 3,
    "stream": True,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 3, "pattern": "^x"},
        "b": {"enum": [1, None]},
        "c": {"$ref": "#/$defs/d"},
    },
    "required": ["a"],
    "allOf": [{"properties": {"a": {"minLength": 1}}}],
    "$defs": {"d": {"type": "array", "items": {"oneOf": [{"type": "integer"}, {"const": "x"}]}}},
}
GOOD: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "model": "mmx-demo",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "u"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "t"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "max_tokens": 3,
            "temperature": 0.5,
            "stop": ["x"],
            "logit_bias": {"5": 1.0},
            "logprobs": True,
            "top_logprobs": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"thinking_mode": "enabled"},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "u"}],
            "max_tokens": 3,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
            "reasoning": {"effort": "low"},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "u"}],
            "max_tokens": 3,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "thinking": {"type": "enabled", "budget_tokens": 2},
        },
    ),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "structured_outputs": {"choice": ["x", "y"]}}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "n": 2, "echo": False}),
    ("/tokenize", {"prompt": "hello", "add_special_tokens": True}),
    ("/tokenize", {"messages": [{"role": "user", "content": "u"}], "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/abort_request", {"request_id": "x"}),
    ("/v1/messages", MESSAGES),
    ("/v1/messages/count_tokens", MESSAGES),
    ("/v1/responses", RESPONSES),
]


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    simple = [
        *(None, True, False, 0, -1, 1, 2, 16, 2**31, -(2**63), 2**64, 10**30, 0.0, -0.5, 1.5, 1e308),
        *("", "x", "auto", "none", "\0", "\u2028", "]~b]ai\n", "[e~[", "🎉" * 5, "{{ 7*7 }}", "a" * 300),
        *([], {}, [[]], [None], [1, "x"], {"type": "text"}, {"": ""}),
    ]
    if depth < 3 and rng.random() < 0.3:
        inner = [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return inner if rng.random() < 0.5 else {f"k{i}": value for i, value in enumerate(inner)}
    return rng.choice(simple)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in items:
        found += paths_of(member, (*path, key))
    return found


def mutated(rng: random.Random, body: dict[str, Any], fields: tuple[str, ...]) -> bytes:
    """The body with one to three things replaced, removed or added, sometimes damaged as text too."""
    copy = msgspec.json.decode(msgspec.json.encode(body))
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(paths_of(copy))
        if not path or rng.random() < 0.4:
            copy[rng.choice(fields)] = odd_value(rng)
            continue
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        if rng.random() < 0.2:
            del parent[path[-1]]
        else:
            parent[path[-1]] = odd_value(rng)
    data = bytearray(msgspec.json.encode(copy))
    if rng.random() < 0.25:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            choice = rng.random()
            if choice < 0.4:
                data[at] = rng.randrange(256)
            elif choice < 0.7:
                del data[at : at + rng.randint(1, 8)]
            else:
                data[at:at] = rng.choice([b"\\ud800", b"NaN", b"\xff", b"[" * 200, b'"', b"}", b"1e999"])
            if not data:
                break
    return bytes(data)


async def answer(server: Server, path: str, data: bytes) -> int:
    """Through the whole application without a socket."""
    loop = asyncio.get_running_loop()
    payload = streams.StreamReader(BaseProtocol(loop), limit=1 << 16, loop=loop)
    payload.feed_data(data)
    payload.feed_eof()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    request = make_mocked_request("POST", path, headers=headers, payload=payload, app=server.app)
    response = await server.app._handle(request)
    assert isinstance(response, web.StreamResponse)
    return response.status


@pytest.mark.parametrize("seed", range(4))
async def test_no_body_breaks_the_server(seed: int) -> None:
    rng = random.Random(seed)
    seen: dict[int, int] = {}
    async with serving(ScriptedEngine("a<mm:think>b")) as server:
        for _ in range(NUM_BODIES // 4):
            path, body = rng.choice(GOOD)
            fields = FIELDS.get(path, CompletionRequest.__struct_fields__)
            data = mutated(rng, body, fields)
            status = await answer(server, path, data)
            seen[status] = seen.get(status, 0) + 1
            assert status < 500, data
        await server.idle()
        assert (await server.chat())[0] == 200
    # Neither may the mutations be too tame to matter, nor so wild that nothing gets through.
    assert seen[200] > 100
    assert seen[400] > 1000, seen
