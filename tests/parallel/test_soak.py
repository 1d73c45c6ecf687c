"""Ranks under random load and cancels: nothing leaks, nothing hangs."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from mmx.config import EngineConfig, ParallelConfig, SamplingParams
from mmx.engine.client import EngineClient
from mmx.protocol import Failed, Submit
from models.tiny import write_tiny_checkpoint
from parallel.processes import ranks_of

OPEN_REQUESTS = 12
GROWTH_BYTES = 48 << 20


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} has gone")


async def one_request(client: EngineClient, name: str, rng: random.Random) -> None:
    """A random request that ends by itself or is cancelled after a random number of tokens."""
    prompt = [rng.randrange(256) for _ in range(rng.choice((1, 7, 40, 90)))]
    params = SamplingParams(
        max_tokens=rng.randrange(1, 60),
        temperature=rng.choice((0.0, 1.0)),
        repetition_penalty=rng.choice((1.0, 1.2)),
    )
    stream = client.submit(Submit(request_id=name, prompt_token_ids=prompt, params=params))
    patience = rng.choice((0, 1, 5, 1000))
    num_tokens = 0
    async for item in stream:
        assert not isinstance(item, Failed), item
        num_tokens += len(item.token_ids)
        if num_tokens >= patience and item.finish_reason is None:
            client.abort([name])


async def soak(settings: EngineConfig, seconds: float) -> None:
    client = await EngineClient.start(settings)
    try:
        await client.wait_ready()
        processes = [client.process.pid, *ranks_of(client.process.pid)]
        counter, sizes = 0, []
        for _ in range(2):
            end = time.monotonic() + seconds / 2

            async def worker(number: int, end: float = end) -> None:
                nonlocal counter
                rng = random.Random(number)
                while time.monotonic() < end:
                    counter += 1
                    await one_request(client, f"r{counter}", rng)

            await asyncio.wait_for(asyncio.gather(*map(worker, range(OPEN_REQUESTS))), seconds + 60)
            sizes.append([resident(pid) for pid in processes])
        assert counter > 10 * seconds
        assert client.num_open == 0
        client.reset_prefix_cache()
        await asyncio.sleep(0.5)
        assert client.stats is not None
        assert client.stats.num_free_blocks == client.stats.num_blocks
        assert client.stats.num_running == client.stats.num_waiting == 0
        for before, after in zip(*sizes, strict=True):
            assert after < before + GROWTH_BYTES
    finally:
        assert await client.shutdown() == 0


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(8, id="short"),
        pytest.param(240, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
@pytest.mark.parametrize(
    "layout",
    [{"tensor_parallel_size": 2}, {"data_parallel_size": 2, "expert_parallel": True}],
    ids=["tp2", "dep2"],
)
def test_soak(layout: dict[str, object], seconds: float, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, "m3")
    settings = EngineConfig(
        model=str(folder),
        device="cpu",
        kv_cache_bytes=1 << 20,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        parallel=ParallelConfig(**layout),
    )
    asyncio.run(soak(settings, seconds))
