"""Constrained answers of the demo model through the official clients: what comes back is valid, whatever the
model would rather say."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import openai
import pytest

from server.process import Process

MODEL = "mmx-demo"
USER: Any = [{"role": "user", "content": "hi"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "save_person", "strict": True, "parameters": PERSON}}
OTHER: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
MODES = ["enabled", "adaptive", "disabled"]


def check_person(text: str | None) -> None:
    person = json.loads(text or "")
    assert set(person) <= {"name", "age", "tags"}
    assert isinstance(person["name"], str) and len(person["name"]) <= 20
    assert isinstance(person["age"], int) and 0 <= person["age"] <= 150
    assert all(tag in ("a", "b") for tag in person.get("tags", []))


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    body = {"model": MODEL, "messages": USER, "max_tokens": 200, "seed": 5, **fields}
    return client.chat.completions.create(**body).choices[0]


@pytest.mark.parametrize("mode", MODES)
def test_json_schema_in_every_thinking_mode(client: openai.OpenAI, mode: str) -> None:
    thinking = {"chat_template_kwargs": {"thinking_mode": mode}}
    choice = chat(client, response_format=FORMAT, extra_body=thinking)
    assert choice.finish_reason == "stop"
    check_person(choice.message.content)


@pytest.mark.parametrize("mode", MODES)
def test_named_call_in_every_thinking_mode(client: openai.OpenAI, mode: str) -> None:
    choice = chat(
        client,
        tools=[TOOL, OTHER],
        tool_choice={"type": "function", "function": {"name": "save_person"}},
        extra_body={"chat_template_kwargs": {"thinking_mode": mode}},
    )
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    (call,) = choice.message.tool_calls
    assert call.function.name == "save_person"
    check_person(call.function.arguments)


def test_required_calls_and_a_single_one(client: openai.OpenAI) -> None:
    for fields in ({}, {"parallel_tool_calls": False}):
        choice = chat(client, tools=[TOOL, OTHER], tool_choice="required", temperature=1.0, **fields)
        calls = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and calls
        assert not fields or len(calls) == 1
        for call in calls:
            if call.function.name == "save_person":
                check_person(call.function.arguments)


def test_a_streamed_call_equals_the_whole_one(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": USER, "max_tokens": 200, "temperature": 0}
    fields |= {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**fields).choices[0].message.tool_calls[0]
    chunks = client.chat.completions.create(**fields, stream=True)
    parts = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    streamed = "".join(part.function.arguments or "" for part in parts)
    assert json.loads(streamed) == json.loads(whole.function.arguments)


def test_no_call_where_none_is_wanted(client: openai.OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Save a person: Ada, 36 years."}]
    choice = chat(client, messages=ask, tools=[TOOL], tool_choice="none")
    assert not choice.message.tool_calls
    assert "tool_call" not in (choice.message.content or "")


def test_a_document_or_a_call_where_both_are_possible(client: openai.OpenAI) -> None:
    choice = chat(client, tools=[OTHER], response_format=FORMAT)
    if choice.message.tool_calls:
        assert {call.function.name for call in choice.message.tool_calls} == {"other"}
    else:
        check_person(choice.message.content)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "json_object"}}, r"(?s)\{.*\}"),
        ({"extra_body": {"guided_regex": "[0-9]{3}-[a-f]{1,5}x"}}, r"[0-9]{3}-[a-f]{1,5}x"),
        ({"extra_body": {"guided_choice": ["yes", "no"]}}, "yes|no"),
        ({"extra_body": {"structured_outputs": {"regex": "(ab){2,4}"}}}, "(ab){2,4}"),
        ({"extra_body": {"structured_outputs": {"json": {"type": "integer"}}}}, "-?[0-9]+"),
        ({"extra_body": {"guided_grammar": 'start: "a" B\nB: /b{2}/'}}, "abb"),
        ({"extra_body": {"ebnf": 'root ::= "x" ("y" | "z")'}}, "x[yz]"),
    ],
)
def test_other_shapes(client: openai.OpenAI, fields: dict[str, Any], pattern: str) -> None:
    choice = chat(client, **fields)
    assert choice.finish_reason == "stop"
    assert re.fullmatch(pattern, choice.message.content), choice.message.content


def test_choices_of_one_request_are_all_constrained(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=120, n=3, temperature=1.5, seed=3, response_format=FORMAT
    )
    for choice in answer.choices:
        check_person(choice.message.content)


def test_plain_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["Say:", "Or:"], max_tokens=9, extra_body={"guided_choice": ["left", "right"]}
    )
    assert {choice.text for choice in answer.choices} <= {"left", "right"}


def test_logprobs_are_those_of_the_model_and_name_what_was_sampled(client: openai.OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=2, extra_body={"guided_choice": ["yes", "no"]})
    entries = choice.logprobs.content
    assert choice.message.content in "".join(entry.token for entry in entries)
    assert all(entry.logprob <= 0 for entry in entries)


def test_prompt_logprobs_and_echo(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    fields: Any = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "temperature": 0}
    (choice,) = client.completions.create(**fields, echo=True, logprobs=2).choices
    lists = choice.logprobs
    assert "".join(lists.tokens) == choice.text
    assert lists.token_logprobs[0] is None and all(value <= 0 for value in lists.token_logprobs[1:])
    assert lists.text_offset == [len("".join(lists.tokens[:i])) for i in range(len(lists.tokens))]
    (choice,) = client.completions.create(**fields, extra_body={"prompt_logprobs": 1}).choices
    (first, *others) = choice.prompt_logprobs
    assert first is None
    values = lists.token_logprobs[1 : 1 + len(others)]
    assert [next(iter(entry.values()))["logprob"] for entry in others] == pytest.approx(values)
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens


def test_responses(client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    answer = client.responses.create(model=MODEL, input="hi", text=text, max_output_tokens=200)
    check_person(answer.output_text)
    tool: Any = {"type": "function", "name": "save_person", "strict": True, "parameters": PERSON}
    answer = client.responses.create(
        model=MODEL, input="hi", tools=[tool], tool_choice="required", max_output_tokens=300,
        parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = [item for item in answer.output if item.type == "function_call"]
    check_person(call.arguments)


def test_messages(demo: Process) -> None:
    tool: Any = {"name": "save_person", "input_schema": PERSON, "strict": True}
    with anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(
            model=MODEL, max_tokens=300, messages=USER, tools=[tool],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )  # fmt: skip
        assert answer.stop_reason == "tool_use"
        (use,) = [block for block in answer.content if block.type == "tool_use"]
        check_person(json.dumps(use.input))
        format: Any = {"format": {"type": "json_schema", "schema": PERSON}}
        answer = client.messages.create(
            model=MODEL, max_tokens=300, messages=USER, extra_body={"output_config": format}
        )
        check_person("".join(block.text for block in answer.content if block.type == "text"))


def test_a_thought_ends_at_its_budget(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": USER, "max_tokens": 100, "temperature": 2.0, "seed": 1}
    spellings: list[dict[str, Any]] = [
        {"thinking_token_budget": 6, "thinking": {"type": "enabled"}},
        {"thinking": {"type": "enabled", "budget_tokens": 6}},
        {"chat_template_kwargs": {"thinking_budget": 6, "thinking_mode": "enabled"}},
        {"reasoning": {"max_tokens": 6, "enabled": True}},
    ]
    for spelling in spellings:
        answer = client.chat.completions.create(**fields, extra_body=spelling)
        details = answer.usage.completion_tokens_details
        # The words that end the thought belong to it.
        assert details.reasoning_tokens < 40
        assert answer.choices[0].message.content


def test_allowed_ids_and_bad_words(client: openai.OpenAI) -> None:
    ids = [100, 101, 102]
    answer = client.completions.create(
        model=MODEL, prompt="x", max_tokens=8,
        extra_body={"allowed_token_ids": ids, "return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    assert set(answer.choices[0].token_ids) <= set(ids)
    greedy: Any = {"model": MODEL, "messages": USER, "max_tokens": 24, "temperature": 0}
    greedy["extra_body"] = {"chat_template_kwargs": {"thinking_mode": "disabled"}}
    text = client.chat.completions.create(**greedy).choices[0].message.content
    word = text.split()[-1].strip(".!?")
    greedy["extra_body"] = {**greedy["extra_body"], "bad_words": [word]}
    assert word not in client.chat.completions.create(**greedy).choices[0].message.content.split()
