"""The embedded demo model behind the real server process: what a user gets from the first two commands."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import anthropic
import openai
import pytest

from server.process import Process

USER: Any = [{"role": "user", "content": "hi"}]


def test_curl(demo: Process) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    body = json.dumps({"model": "mmx-demo", "messages": USER, "max_tokens": 8})
    command = [
        curl,
        "-sS",
        f"{demo.url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 1 <= answer["usage"]["completion_tokens"] <= 8


def test_stream_equals_whole_and_the_second_prompt_is_cached(client: openai.OpenAI) -> None:
    fields: Any = {"model": "mmx-demo", "messages": USER, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    thought = "".join(getattr(c.choices[0].delta, "reasoning", None) or "" for c in chunks if c.choices)
    message = whole.choices[0].message
    assert text == (message.content or "")
    assert thought == (getattr(message, "reasoning", None) or "")
    assert text or thought
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= 128


def test_messages(demo: Process) -> None:
    fields: Any = {"model": "mmx-demo", "messages": USER, "max_tokens": 24, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(**fields)
        with client.messages.stream(**fields) as stream:
            streamed = stream.get_final_message()
        counted = client.messages.count_tokens(model="mmx-demo", messages=USER)
    assert whole.content
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert streamed.stop_reason == whole.stop_reason
    usage = streamed.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_responses(client: openai.OpenAI) -> None:
    fields: Any = {"model": "mmx-demo", "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**fields, input="hi")
    with client.responses.stream(**fields, input="hi") as stream:
        streamed = list(stream)[-1].response
    assert whole.output
    for one, two in zip(streamed.output, whole.output, strict=True):
        assert one.content[0].text == two.content[0].text
    assert streamed.status == whole.status
    again = client.responses.create(**fields, input="and?", previous_response_id=whole.id)
    assert again.usage is not None
    assert again.usage.input_tokens_details.cached_tokens >= 64


def test_logprobs_are_those_of_greedy_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="mmx-demo", prompt="The", max_tokens=4, temperature=0, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.token_logprobs is not None
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value == max(top.values())


def test_seeded_samples_repeat(client: openai.OpenAI) -> None:
    fields: Any = {"model": "mmx-demo", "prompt": "A", "max_tokens": 8, "temperature": 1.0, "n": 2}
    first = client.completions.create(**fields, seed=7)
    again = client.completions.create(**fields, seed=7)
    assert [c.text for c in first.choices] == [c.text for c in again.choices]


def test_health_and_models(demo: Process) -> None:
    assert demo.get("/health")[0] == 200
    _, models = demo.get("/v1/models")
    assert models["data"][0]["mmx"]["family"] == "m3"
    assert models["data"][0]["max_model_len"] == 4096
