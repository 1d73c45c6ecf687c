"""Multi-turn chats: a turn starts from the pages of the one before it where the template keeps that turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from mmx.tokenizer import Tokenizer
from server.process import server
from unit.tokenizer_helpers import m2_folder

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


TOOL: Any = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = """<minimax:tool_call>
<invoke name="f">
<parameter name="a">1</parameter>
</invoke>
</minimax:tool_call>"""
THOUGHT = "I look at the numbers one after the other and add them. " * 30


def test_m2_keeps_its_thoughts_inside_a_tool_loop_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(m2_folder(tmp_path))
    texts = [
        f"{THOUGHT}\n</think>\n\nOne moment.\n{CALL}",
        f"{THOUGHT}\n</think>\n\nIt is 3.",
        "Short.\n</think>\n\nYes.",
    ]
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([[*tokenizer.encode(t), tokenizer.eos_token_ids[0]] for t in texts]))
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{Path(__file__).parents[2] / 'python'}")
    history: list[Any] = [{"role": "user", "content": QUESTIONS[2]}]
    usages = []
    with server(f"server.playing_runner?answers={answers}", str(tmp_path)) as process:
        process.ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
            for _ in texts:
                answer = client.chat.completions.create(
                    model=tmp_path.name, messages=history, tools=[TOOL], max_tokens=900
                )
                message, usage = answer.choices[0].message, answer.usage
                assert usage is not None and usage.prompt_tokens_details is not None
                usages.append(usage)
                turn: dict[str, Any] = {"role": "assistant", "content": message.content}
                turn["reasoning_content"] = message.reasoning_content
                history.append(turn)
                if message.tool_calls:
                    turn["tool_calls"] = [call.to_dict() for call in message.tool_calls]
                    call_id = message.tool_calls[0].id
                    history.append({"role": "tool", "tool_call_id": call_id, "content": "1 and 2"})
                else:
                    history.append({"role": "user", "content": QUESTIONS[3]})
    first, inside, after = usages
    known = first.prompt_tokens + first.completion_tokens - 1
    assert known > 3 * PAGE
    assert inside.prompt_tokens_details.cached_tokens >= known // PAGE * PAGE
    # A new question: the thoughts of the loop are left out, so that the pages end where the first one began.
    kept = first.prompt_tokens // PAGE * PAGE
    assert after.prompt_tokens < inside.prompt_tokens
    assert kept - PAGE <= after.prompt_tokens_details.cached_tokens <= kept
