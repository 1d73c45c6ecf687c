"""What the benchmark clients of vLLM and SGLang send, and what they read from the stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.helpers import serving

TEXT = {"prompt": "hi", "max_tokens": 3}
PARTS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "max_completion_tokens": 3,
}
PLAIN = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 3}
VLLM = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
SGLANG = {"stream": True, "temperature": 0.0, "ignore_eos": True}
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


async def events(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream that must end in [DONE]; one line each."""
    async with serving() as server, server.http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        lines = [line for line in (await response.text()).split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


@pytest.mark.parametrize(
    ("path", "body"),
    [(COMPLETIONS, {**TEXT, **VLLM, "repetition_penalty": 1.0, "logprobs": None}), (CHAT, {**PARTS, **VLLM})],
)
async def test_vllm_client_finds_the_token_counts_in_an_event_without_choices(
    path: str, body: dict[str, Any]
) -> None:
    *tokens, last = await events(path, body)
    assert all(event["choices"] for event in tokens)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["prompt_tokens"] > 0


async def test_sglang_client_finds_a_text_in_every_completion_event() -> None:
    found = await events(COMPLETIONS, {**TEXT, **SGLANG, "best_of": 1})
    assert len([event for event in found if event["choices"][0]["text"]]) == 3


async def test_sglang_client_finds_a_delta_in_every_chat_event() -> None:
    found = await events(CHAT, {**PLAIN, **SGLANG})
    deltas = [event["choices"][0]["delta"] for event in found]
    assert len([delta for delta in deltas if delta.get("content") or delta.get("reasoning_content")]) == 3
