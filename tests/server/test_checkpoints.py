"""What the server takes from a checkpoint: family, parsers, template, sampling defaults, name."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmx.server.lifecycle import SUPERVISOR
from mmx.tokenizer import Tokenizer
from server.helpers import DEMO, ScriptedEngine, serving
from unit.tokenizer_helpers import m2_folder

PARAMETER = '<parameter name="a">1</parameter>'
CALL = f'<minimax:tool_call>\n<invoke name="f">\n{PARAMETER}\n</invoke>\n</minimax:tool_call>'
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]


@pytest.fixture
def m2(tmp_path: Path) -> Path:
    return m2_folder(tmp_path)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The demo checkpoint without its weights, to be changed."""
    shutil.copytree(DEMO, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "copy"


def speaking(folder: Path, text: str) -> ScriptedEngine:
    tokenizer = Tokenizer(folder)
    return ScriptedEngine(lambda _: [*tokenizer.encode(text), tokenizer.eos_token_ids[0]])


async def test_m2_thinks_from_the_start_and_calls(m2: Path) -> None:
    async with serving(speaking(m2, f"Hm.\n</think>\n\nYes.\n{CALL}"), folder=m2) as server:
        _, body = await server.chat(tools=TOOLS)
        (choice,) = body["choices"]
        message = choice["message"]
        assert message["reasoning"] == "Hm."
        assert message["content"].strip() == "Yes."
        assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
        assert choice["finish_reason"] == "tool_calls"
        assert body["mmx"]["thinking_mode"] == "enabled"
        _, models = await server.get("/v1/models")
        assert models["data"][0]["mmx"] == {
            "family": "m2",
            "thinking_modes": ["enabled"],
            "modalities": ["text"],
            "dtype": "float32",
        }


async def test_m2_without_thinking_warns(m2: Path) -> None:
    async with serving(speaking(m2, "Yes."), folder=m2) as server:
        _, body = await server.chat(enable_thinking=False)
        assert body["choices"][0]["message"]["content"] == "Yes."
        assert any("not trained" in warning for warning in body["mmx"]["warnings"])


async def test_append_think_keeps_thoughts_in_the_content(m2: Path) -> None:
    engine = speaking(m2, "Hm.\n</think>\n\nYes.")
    for spelling in ("minimax_m2_append_think", "minimax-append-think"):
        async with serving(engine, "--reasoning-parser", spelling, folder=m2) as server:
            _, body = await server.chat()
            message = body["choices"][0]["message"]
            assert message["content"] == "<think>Hm.\n</think>\n\nYes."
            assert "reasoning" not in message


async def test_parsers_of_two_families_are_refused(m2: Path) -> None:
    flags = ("--reasoning-parser", "minimax_m3", "--tool-call-parser", "minimax_m2")
    async with serving(None, *flags, folder=m2, wait=False) as server:
        assert await asyncio.wait_for(server.app[SUPERVISOR].finished, 10) == 3


async def test_sampling_defaults_come_from_the_checkpoint(copy: Path) -> None:
    file = copy / "generation_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "temperature": 0.7, "top_p": 0.8, "top_k": 11}))
    async with serving(folder=copy) as server:
        await server.chat()
        await server.chat(top_k=3, temperature=0)
        first, second = (message.params for message in server.engine.submitted)
        assert (first.temperature, first.top_p, first.top_k) == (0.7, 0.8, 11)
        assert (second.temperature, second.top_p, second.top_k) == (0.0, 0.8, 3)
    async with serving(None, "--generation-config", "none", folder=copy) as server:
        await server.chat()
        params = server.engine.submitted[0].params
        assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, 0)


async def test_greedy_checkpoints_stay_greedy(copy: Path) -> None:
    file = copy / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": False}))
    async with serving(folder=copy) as server:
        await server.chat()
        assert server.engine.submitted[0].params.greedy


async def test_template_from_text_and_file(tmp_path: Path) -> None:
    source = "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ mood }}"
    file = tmp_path / "template.jinja"
    file.write_text(source)
    kwargs = ("--default-chat-template-kwargs", '{"mood": "fine"}')
    for given in (source, str(file)):
        async with serving(None, "--chat-template", given, *kwargs) as server:
            _, body = await server.chat(return_prompt_text=True)
            assert body["prompt"] == "<hi>fine"
            _, body = await server.chat(return_prompt_text=True, chat_template_kwargs={"mood": "odd"})
            assert body["prompt"] == "<hi>odd"


@pytest.mark.parametrize(
    ("flag", "value"), [("--chat-template", "/nowhere.jinja"), ("--chat-template", "{% broken")]
)
async def test_unusable_template_exits_3(flag: str, value: str) -> None:
    async with serving(None, flag, value, wait=False) as server:
        assert await asyncio.wait_for(server.app[SUPERVISOR].finished, 10) == 3


async def test_template_that_raises_is_the_callers_fault(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ raise_exception('only haiku') }}")
    async with serving(folder=copy) as server:
        status, body = await server.chat()
        assert (status, body["error"]["code"], body["error"]["param"]) == (
            400,
            "chat_template_error",
            "messages",
        )
        assert "only haiku" in body["error"]["message"]


async def test_name_of_a_hub_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models--MiniMaxAI--MiniMax-M3" / "snapshots" / "abc"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    async with serving(None, "--model", str(folder), folder=folder) as server:
        _, models = await server.get("/v1/models")
        assert models["data"][0]["id"] == "MiniMaxAI/MiniMax-M3"
        assert (await server.chat(model="minimax-m3"))[0] == 200


async def test_continuation_of_the_last_message() -> None:
    async with serving(ScriptedEngine(" world")) as server:
        messages = [
            {"role": "user", "content": "Say hello world."},
            {"role": "assistant", "content": "hello", "prefix": True},
        ]
        _, body = await server.chat(messages=messages, return_prompt_text=True)
        assert body["prompt"].endswith("hello")
        assert body["choices"][0]["message"]["content"] == " world"


async def test_token_ids_in_and_out() -> None:
    async with serving(ScriptedEngine("abc")) as server:
        _, body = await server.chat(return_token_ids=True)
        ids = body["choices"][0]["token_ids"]
        assert len(ids) == body["usage"]["completion_tokens"]
        assert body["prompt_token_ids"] == server.engine.submitted[0].prompt_token_ids
        _, cut = await server.chat(truncate_prompt_tokens=7, return_token_ids=True)
        assert cut["prompt_token_ids"] == body["prompt_token_ids"][-7:]
        assert cut["usage"]["prompt_tokens"] == 7
