"""A rank that dies, stops or hangs in mid-decode: its requests end with 503 in seconds, nobody is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmx.config import EngineConfig, ParallelConfig, SamplingParams
from mmx.engine.client import EngineClient, EngineDeadError
from mmx.protocol import Failed, Submit
from models.tiny import write_tiny_checkpoint
from parallel.processes import children, ranks_of, wait_gone
from server.process import server

ROOT = Path(__file__).resolve().parents[2]
# What the issue allows.
LIMIT_SECONDS = 15.0


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank processes import runners from the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), "m3")


def config(folder: Path, **parallel: object) -> EngineConfig:
    return EngineConfig(
        model=str(folder),
        device="cpu",
        kv_cache_bytes=1 << 24,
        parallel=ParallelConfig(**{"tensor_parallel_size": 2, "rendezvous_timeout": 60.0} | parallel),
    )


async def fail_under_load(
    settings: EngineConfig, harm: Callable[[EngineClient, list[int]], None], runner: str = "model"
) -> tuple[list[Failed], str, float]:
    """Start ranks and endless requests, do harm in mid-decode; what the requests end with, what the engine
    said, and after how many seconds."""
    client = await EngineClient.start(settings, runner=runner)
    try:
        await client.wait_ready()
        ranks = ranks_of(client.process.pid)
        assert len(ranks) == settings.parallel.world_size - 1
        params = SamplingParams(max_tokens=3000, ignore_eos=True)
        streams = [
            client.submit(Submit(request_id=str(i), prompt_token_ids=[i, 2, 3], params=params))
            for i in range(6)
        ]
        for stream in streams:
            await stream.take()
        began = time.monotonic()
        harm(client, ranks)
        lasts = []
        for stream in streams:
            while items := await stream.take():
                last = items[-1]
            lasts.append(last)
        seconds = time.monotonic() - began
        assert all(isinstance(last, Failed) for last in lasts)
        assert client.dead is not None
        message = client.dead.message
        wait_gone([client.process.pid, *ranks])
        assert await client.process.wait() != 0
        return lasts, message, seconds
    finally:
        await client.shutdown()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("layout", [{}, {"attention_dp": True, "expert_parallel": True}], ids=["tp2", "dep2"])
def test_lost_rank(folder: Path, number: signal.Signals, layout: dict[str, object]) -> None:
    def harm(client: EngineClient, ranks: list[int]) -> None:
        os.kill(ranks[0], number)

    lasts, message, seconds = asyncio.run(fail_under_load(config(folder, **layout), harm))
    assert [(last.status, last.code) for last in lasts] == [(503, "engine_dead")] * 6
    assert seconds < LIMIT_SECONDS
    what = "was lost: its connection is closed" if number == signal.SIGKILL else "has been silent for 8 s"
    assert message.startswith("rank 1 (") and what in message
    # The report says where the others are, by the name of the collective.
    assert "rank 0 is in " in message
    if number == signal.SIGSTOP:
        group = "spread" if layout else "tensor"
        assert f"of the {group} group (step " in message


def test_a_step_that_hangs_names_the_rank_that_is_elsewhere(folder: Path) -> None:
    settings = config(folder, step_timeout=3.0)
    lasts, message, _ = asyncio.run(
        fail_under_load(settings, lambda client, ranks: None, runner="parallel.hanging_runner")
    )
    assert [last.status for last in lasts] == [503] * 6
    assert (
        message.startswith("step ")
        and "has not ended within 3 s; rank 0 is in all_reduce of the tensor" in message
    )
    assert "rank 1 is in its own work (step " in message


def test_an_exception_of_a_rank_is_reported(folder: Path) -> None:
    _, message, _ = asyncio.run(
        fail_under_load(config(folder), lambda client, ranks: None, runner="parallel.raising_runner")
    )
    assert "rank 1 (" in message
    assert "ended: RuntimeError: a kernel of this rank refused its input" in message


def test_a_rank_that_can_not_load_ends_the_start(folder: Path) -> None:
    async def test() -> None:
        client = await EngineClient.start(config(folder), runner="parallel.loading_runner")
        with pytest.raises(EngineDeadError, match=r"rank 1 .* ended: MemoryPlanError") as caught:
            await client.wait_ready()
        assert caught.value.exit_code == 5
        await client.shutdown()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_killed_engine_takes_its_ranks_along(folder: Path) -> None:
    async def test() -> None:
        client = await EngineClient.start(config(folder))
        await client.wait_ready()
        ranks = ranks_of(client.process.pid)
        client.process.kill()
        await client.process.wait()
        wait_gone(ranks)
        await client.shutdown()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_server_turns_unhealthy_ends_and_serves_again() -> None:
    flags = ("--device", "cpu", "-tp", "2", "--kv-cache-memory-bytes", "64M", "--shutdown-timeout", "2")
    with server("mmx.runner", *flags) as process:
        process.ready()
        assert [rank["rank"] for rank in process.get("/health")[1]["ranks"]] == [0, 1]
        (engine,) = children(process.child.pid)
        ranks = ranks_of(engine)
        stream = process.stream(20000)
        os.kill(ranks[0], signal.SIGKILL)
        began = time.monotonic()
        while process.get("/health")[0] != 503:
            assert time.monotonic() - began < LIMIT_SECONDS
            time.sleep(0.02)
        assert b'"code":"engine_dead"' in stream.read()
        assert process.wait() == 1
        wait_gone([engine, *ranks])
    with server("mmx.runner", *flags) as process:
        process.ready()
        stream = process.stream(3)
        assert stream.read().rstrip().endswith(b"data: [DONE]")
