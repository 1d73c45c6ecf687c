"""The engine process with a real model: same tokens as in-process, and a start that fails says why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from mmx import LLM, SamplingParams
from mmx.config import EngineConfig
from mmx.engine.client import EngineClient, EngineDeadError
from mmx.protocol import Submit, TokenOut
from models.tiny import write_tiny_checkpoint

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
PROMPTS = [[5, 6, 7], list(range(50)), [9] * 20]
POOL_BYTES = 4 << 20


def test_another_process_gives_the_same_tokens(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m3", "m3", torch.float32, seed=2)
    llm = LLM(str(folder), device="cpu", skip_tokenizer_init=True, kv_cache_bytes=POOL_BYTES)
    expected = [(result.token_ids, result.logprobs) for result in llm.generate(PROMPTS, PARAMS)]

    async def generate(client: EngineClient, i: int) -> tuple[list[int], list[object]]:
        tokens: list[int] = []
        logprobs: list[object] = []
        stream = client.submit(Submit(request_id=str(i), prompt_token_ids=PROMPTS[i], params=PARAMS))
        while items := await stream.take():
            for item in items:
                assert isinstance(item, TokenOut)
                tokens += item.token_ids
                logprobs += item.logprobs or []
        return tokens, logprobs

    async def test() -> None:
        config = EngineConfig(model=str(folder), device="cpu", kv_cache_bytes=POOL_BYTES)
        client = await EngineClient.start(config)
        ready = await client.wait_ready()
        assert (ready.model_family, ready.device, ready.dtype) == ("m3", "cpu", "float32")
        assert (ready.num_blocks, ready.max_model_len) == (llm.stats().num_blocks, llm.max_model_len)
        assert await asyncio.gather(*(generate(client, i) for i in range(len(PROMPTS)))) == expected
        assert await client.shutdown() == 0

    asyncio.run(test())


@pytest.mark.parametrize(
    ("fault", "exit_code", "words"),
    [
        ("truncated shard", 4, ".safetensors"),
        ("unknown activation", 3, "hidden_act"),
        ("no memory", 5, "does not fit"),
    ],
)
def test_a_refused_model_ends_the_process_with_its_code(
    tmp_path: Path, fault: str, exit_code: int, words: str
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m2", "m2", torch.float32)
    if fault == "truncated shard":
        shard = min(folder.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-100])
    if fault == "unknown activation":
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"silu"', '"gelu"'))

    async def test() -> None:
        pool = 1 if fault == "no memory" else POOL_BYTES
        config = EngineConfig(model=str(folder), device="cpu", kv_cache_bytes=pool)
        client = await EngineClient.start(config)
        with pytest.raises(EngineDeadError) as caught:
            await client.wait_ready()
        assert caught.value.exit_code == exit_code
        assert words in str(caught.value)
        assert await client.shutdown() == exit_code

    asyncio.run(test())
