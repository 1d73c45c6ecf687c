"""/v1/responses, driven by the official client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.helpers import ARGUMENTS, CALL, MODEL, PARAMETERS, TOKENIZER, ScriptedEngine, Server, serving

PATH = "/v1/responses"
TOOLS: list[Any] = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS}]
CHAT_TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
SCRIPT = f"<mm:think>Need it.</mm:think>Checking.{CALL}"


async def events_of(server: Server, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, numbered without gaps."""
    events = await server.events(PATH, {"input": "hi", **fields})
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]


async def test_text_usage_and_echo() -> None:
    async with serving(ScriptedEngine("It rains.")) as server:
        answer = await server.openai.responses.create(
            model=MODEL,
            input="Weather?",
            instructions="Be brief.",
            max_output_tokens=50,
            temperature=0.5,
            metadata={"a": "b"},
            user="u",
        )
        assert (answer.object, answer.status, answer.error) == ("response", "completed", None)
        assert answer.id.startswith("resp_")
        assert answer.output_text == "It rains."
        (item,) = answer.output
        assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
        (sent,) = server.engine.submitted
        assert (sent.params.max_tokens, sent.params.temperature) == (50, 0.5)
        assert answer.usage.input_tokens == len(sent.prompt_token_ids)
        assert answer.usage.input_tokens_details.cached_tokens == 64
        assert answer.usage.output_tokens == len(TOKENIZER.encode("It rains.")) + 1
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        assert (answer.instructions, answer.max_output_tokens) == ("Be brief.", 50)
        assert (answer.temperature, answer.metadata, answer.user) == (0.5, {"a": "b"}, "u")
        assert (answer.tool_choice, answer.parallel_tool_calls, answer.store) == ("auto", True, True)
        assert answer.completed_at >= answer.created_at
        assert "Be brief." in server.prompt()


@pytest.mark.parametrize("tokens_per_step", [1, 3, 1000])
async def test_thinking_text_and_call(tokens_per_step: int) -> None:
    engine = ScriptedEngine(SCRIPT)
    engine.tokens_per_step = tokens_per_step
    async with serving(engine) as server:
        answer = await server.openai.responses.create(model=MODEL, input="hi", tools=TOOLS)
        async with server.openai.responses.stream(model=MODEL, input="hi", tools=TOOLS) as stream:
            streamed = await stream.get_final_response()
        for found in (answer, streamed):
            thought, text, call = found.output
            assert (thought.type, text.type, call.type) == ("reasoning", "message", "function_call")
            assert thought.id.startswith("rs_")
            assert thought.content[0].text == "Need it."
            assert text.content[0].text == found.output_text == "Checking."
            assert call.call_id.startswith("call_")
            assert (call.name, json.loads(call.arguments)) == ("get_weather", ARGUMENTS)
            assert found.usage.output_tokens_details.reasoning_tokens > 0
        assert streamed.usage == answer.usage


async def test_order_of_events() -> None:
    async with serving(ScriptedEngine(SCRIPT)) as server:
        events = await events_of(server, tools=TOOLS)
        _, whole = await server.post(PATH, {"input": "hi", "tools": TOOLS})
    kinds: list[str] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "completed"),
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    final = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    assert without_ids(final["output"]) == without_ids(whole["output"])
    for index, field in ((0, "reasoning_text"), (1, "output_text"), (2, "function_call_arguments")):
        item_id = final["output"][index]["id"]
        of_item = [e for e in events if e.get("item_id") == item_id]
        assert {e["output_index"] for e in of_item} == {index}
        joined = "".join(e["delta"] for e in of_item if e["type"] == f"response.{field}.delta")
        (end,) = [e for e in of_item if e["type"] == f"response.{field}.done"]
        assert joined == end["arguments" if index == 2 else "text"]


async def test_logprobs() -> None:
    async with serving(ScriptedEngine("Yes it does")) as server:
        include = ["message.output_text.logprobs"]
        events = await events_of(server, include=include, top_logprobs=2)
        (done,) = [e for e in events if e["type"] == "response.output_text.done"]
        deltas = [p for e in events if e["type"] == "response.output_text.delta" for p in e["logprobs"]]
        assert done["logprobs"] == deltas == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
        assert "".join(entry["token"] for entry in deltas) == "Yes it does"
        assert all(len(entry["top_logprobs"]) == 2 for entry in deltas)


async def test_cut_by_length() -> None:
    async with serving(ScriptedEngine(f"One.{CALL}")) as server:
        limit = len(TOKENIZER.encode(f"One.{CALL[: CALL.index('days')]}"))
        events = await events_of(server, tools=TOOLS, max_output_tokens=limit)
        assert events[-1]["type"] == "response.incomplete"
        _, whole = await server.post(PATH, {"input": "hi", "tools": TOOLS, "max_output_tokens": limit})
        for found in (events[-1]["response"], whole):
            assert found["status"] == "incomplete"
            assert found["incomplete_details"] == {"reason": "max_output_tokens"}
            assert [item["status"] for item in found["output"]] == ["completed", "incomplete"]
            assert found["output"][1]["arguments"].startswith('{"city": "Os')
        body = {"input": "go on", "previous_response_id": whole["id"], "tools": TOOLS}
        status, _ = await server.post(PATH, body)
        assert status == 200
        assert "]~b]ai\nOne.[e~[" in server.prompt().replace("</mm:think>", "")


async def test_conversation_by_id_and_by_items_render_as_chat_would() -> None:
    async with serving(ScriptedEngine(SCRIPT)) as server:
        create = server.openai.responses.create
        first = await create(model=MODEL, input="Weather?", instructions="S", tools=TOOLS)
        thought, text, call = first.output
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        chat = [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "Checking.",
                "reasoning": "Need it.",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "rain"},
        ]
        await server.chat(messages=chat, tools=CHAT_TOOLS)
        expected = server.engine.submitted[-1].prompt_token_ids
        by_id = {"previous_response_id": first.id, "input": [output]}
        by_items = {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                *[item.model_dump() for item in first.output],
                output,
            ]
        }
        references = [{"id": item.id} for item in (thought, text)]
        by_reference = {
            "input": [
                {"role": "user", "content": "Weather?"},
                *references,
                {"type": "item_reference", "id": call.id},
                output,
            ]
        }
        for fields in (by_id, by_items, by_reference):
            again = await create(model=MODEL, instructions="S", tools=TOOLS, **fields)  # type: ignore[call-overload]
            assert server.engine.submitted[-1].prompt_token_ids == expected
            assert again.mmx["warnings"] == []
        third = await create(
            model=MODEL, previous_response_id=again.id, input=[{**output, "call_id": again.output[2].call_id}]
        )
        assert third.previous_response_id == again.id
        assert server.prompt().count("<response>rain</response>") == 2


async def test_sealed_thoughts_go_round() -> None:
    async with serving(ScriptedEngine("<mm:think>Need it.</mm:think>Yes.")) as server:
        body = {"input": "a", "include": ["reasoning.encrypted_content"], "store": False}
        _, answer = await server.post(PATH, body)
        thought = {**answer["output"][0], "content": None}
        not_ours = ["input[1].encrypted_content is not of this server"]
        for item, warnings, seen in (
            (thought, [], True),
            ({**thought, "encrypted_content": "abc"}, not_ours, False),
            ({**thought, "encrypted_content": "mmx.ü"}, not_ours, False),
        ):
            history = [{"role": "user", "content": "a"}, item, answer["output"][1]]
            _, again = await server.post(PATH, {"input": [*history, {"role": "user", "content": "b"}]})
            assert again["mmx"]["warnings"] == warnings
            assert ("Need it." in server.prompt()) == seen


async def test_odd_items_are_kept_with_a_warning() -> None:
    async with serving() as server:
        items = [
            {"role": "developer", "content": "D"},
            {"type": "message", "role": "user", "content": "a", "id": None, "status": None},
            {"type": "web_search_call", "id": "ws_1"},
            {"role": "system", "content": "late"},
        ]
        status, answer = await server.post(PATH, {"input": items, "telemetry": 1})
        assert status == 200
        assert answer["mmx"]["warnings"] == [
            "input[2]: an item of type 'web_search_call' is read as the user's text",
            "input[3]: a system message inside the conversation is read as the user's",
            "unknown field telemetry was ignored",
        ]
        prompt = server.prompt()
        assert "D[e~[" in prompt
        assert '{"type": "web_search_call", "id": "ws_1"}' in prompt
        assert "]~b]user\nlate" in prompt


@pytest.mark.parametrize(
    ("fields", "mode"),
    [({}, "adaptive"), ({"reasoning": {"effort": "high"}}, "enabled"), ({"thinking": False}, "disabled")],
)
async def test_thinking_modes(fields: dict[str, Any], mode: str) -> None:
    async with serving(ScriptedEngine("</mm:think>Yes.")) as server:
        _, answer = await server.post(PATH, {"input": "hi", **fields})
        assert answer["mmx"]["thinking_mode"] == mode
