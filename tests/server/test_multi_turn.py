"""Multi-turn chats: a turn starts from the pages of the one before it where the template keeps that turn."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from server.process import server

PAGE = 128
QUESTIONS = [
    "What is the capital of France? " + "Please answer in one short sentence and nothing else. " * 6,
    "And of Italy? " + "The same rules hold: one short sentence, no list, no greeting. " * 5,
    "What is 12 plus 30? " + "Again one short sentence, and write the number in digits. " * 5,
    "Thank you. Which of the two cities is larger? " + "Say so if you do not know. " * 6,
]


@pytest.fixture(scope="module")
def client() -> Any:
    with server("model", "--device", "cpu", "--dtype", "float32", "--max-model-len", "4k") as process:
        process.ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def ask(client: openai.OpenAI, history: list[Any], mode: str) -> tuple[dict[str, Any], Any]:
    """The answer as a message of the history, and its usage."""
    answer = client.chat.completions.create(
        model="mmx-demo",
        messages=history,
        max_tokens=200,
        temperature=0,
        extra_body={"chat_template_kwargs": {"thinking_mode": mode}},
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "stop", "a cut turn says nothing about a kept one"
    turn = {"role": "assistant", "content": message.content}
    if thought := getattr(message, "reasoning_content", None):
        turn["reasoning_content"] = thought
    return turn, answer.usage


@pytest.mark.parametrize("mode", ["enabled", "disabled"])
def test_every_whole_page_of_a_turn_is_cached_for_the_next(client: openai.OpenAI, mode: str) -> None:
    history: list[Any] = []
    known = 0
    for question in QUESTIONS:
        history.append({"role": "user", "content": question})
        turn, usage = ask(client, history, mode)
        assert usage.prompt_tokens > known
        assert usage.prompt_tokens_details.cached_tokens >= known // PAGE * PAGE
        # The last sampled token was never run through the model.
        known = usage.prompt_tokens + usage.completion_tokens - 1
        history.append(turn)
    assert known > 4 * PAGE


def test_a_thought_left_out_of_the_history_ends_the_hit_where_it_stood(client: openai.OpenAI) -> None:
    history: list[Any] = [{"role": "user", "content": "Solve this. " + QUESTIONS[2] * 2}]
    turn, usage = ask(client, history, "enabled")
    assert turn.pop("reasoning_content", None), "the model did not think"
    kept = usage.prompt_tokens
    history += [turn, {"role": "user", "content": QUESTIONS[3]}]
    _, usage = ask(client, history, "enabled")
    # The prompt ends with the opener of the thought; an empty thought renders differently behind it.
    cached = usage.prompt_tokens_details.cached_tokens
    assert (kept - 2) // PAGE * PAGE <= cached <= kept // PAGE * PAGE
