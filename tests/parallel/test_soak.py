"""Ranks under random load and cancels: nothing leaks, nothing hangs.

``--soak-seconds`` and ``--soak-load`` make a long run of it; see "Soak" in docs/parallel.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from mmx.config import EngineConfig, ParallelConfig, SamplingParams
from mmx.engine.client import EngineClient
from mmx.protocol import Failed, Submit
from models.tiny import write_tiny_checkpoint
from parallel.processes import ranks_of

OPEN_REQUESTS = 12
GROWTH_BYTES = 48 << 20
LOAD_PERIOD = 10.0  # seconds; ``load`` is the share of each in which requests start
HUNG_SECONDS = 60.0


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} has gone")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def one_request(client: EngineClient, name: str, rng: random.Random) -> str:
    """A random request that ends by itself or is cancelled after a random number of tokens; how it ended."""
    prompt = [rng.randrange(256) for _ in range(rng.choice((1, 7, 40, 90)))]
    params = SamplingParams(
        max_tokens=rng.randrange(1, 60),
        temperature=rng.choice((0.0, 1.0)),
        repetition_penalty=rng.choice((1.0, 1.2)),
    )
    stream = client.submit(Submit(request_id=name, prompt_token_ids=prompt, params=params))
    patience = rng.choice((0, 1, 5, 1000))
    num_tokens, end = 0, "nothing"
    while items := await stream.take():
        for item in items:
            assert not isinstance(item, Failed), item
            num_tokens += len(item.token_ids)
            if item.finish_reason is not None:
                end = item.finish_reason
            elif num_tokens >= patience:
                client.abort([name])
    return end


async def soak(settings: EngineConfig, seconds: float, load: float) -> None:
    client = await EngineClient.start(settings)
    try:
        await client.wait_ready()
        processes = [client.process.pid, *ranks_of(client.process.pid)]
        ends: Counter[str] = Counter()
        sizes: list[list[int]] = []
        started = time.monotonic()

        async def worker(number: int) -> None:
            rng = random.Random(number)
            num_requests = 0
            while (now := time.monotonic() - started) < seconds:
                if now % LOAD_PERIOD >= load * LOAD_PERIOD:
                    await asyncio.sleep(0.05)
                    continue
                num_requests += 1
                request = one_request(client, f"r{number}-{num_requests}", rng)
                ends[await asyncio.wait_for(request, HUNG_SECONDS)] += 1

        async def sampler() -> None:
            while time.monotonic() - started < seconds:
                await asyncio.sleep(max(2.0, seconds / 120))
                sizes.append([resident(pid) for pid in processes])
                line = {
                    "seconds": round(time.monotonic() - started),
                    "ends": dict(ends),
                    "resident_kib": [size >> 10 for size in sizes[-1]],
                    "processor_seconds": [round(processor_seconds(pid)) for pid in processes],
                }
                print(json.dumps(line), flush=True)

        await asyncio.gather(sampler(), *map(worker, range(OPEN_REQUESTS)))
        assert ends["nothing"] == 0
        assert ends.total() > OPEN_REQUESTS
        assert min(ends["abort"], ends["length"]) > 0
        assert client.num_open == 0
        client.reset_prefix_cache()
        await asyncio.sleep(0.5)
        assert client.stats is not None
        assert client.stats.num_free_blocks == client.stats.num_blocks
        assert client.stats.num_running == client.stats.num_waiting == 0
        for before, after in zip(sizes[len(sizes) // 2], sizes[-1], strict=True):
            assert after < before + GROWTH_BYTES
    finally:
        assert await client.shutdown() == 0


# Why no time-out of pytest's: every request has its own.
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    "layout",
    [{"tensor_parallel_size": 2}, {"data_parallel_size": 2, "expert_parallel": True}],
    ids=["tp2", "dep2"],
)
def test_soak(layout: dict[str, object], tmp_path: Path, pytestconfig: pytest.Config) -> None:
    folder = write_tiny_checkpoint(tmp_path, "m3")
    settings = EngineConfig(
        model=str(folder),
        device="cpu",
        kv_cache_bytes=1 << 20,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        parallel=ParallelConfig(**layout),
    )
    seconds = pytestconfig.getoption("--soak-seconds") or (240 if pytestconfig.getoption("--full") else 8)
    asyncio.run(soak(settings, seconds, pytestconfig.getoption("--soak-load")))
