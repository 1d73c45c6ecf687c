"""The engine process and its asyncio client, with the null runner and with faulty ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.fault_runner import TRIGGER
from mmx.config import EngineConfig, SamplingParams
from mmx.engine.client import EngineClient, EngineDeadError, RequestStream
from mmx.protocol import EngineDead, Failed, StepOutput, Submit, TokenOut

ROOT = Path(__file__).resolve().parents[2]
FAULTS = "engine.fault_runner"


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker imports the faulty runners from the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))


@asynccontextmanager
async def engine(model: str = "null", runner: str = "null", **config: int) -> AsyncIterator[EngineClient]:
    client = await EngineClient.start(EngineConfig(model=model, **config), runner=runner)
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.shutdown()


def submit(request_id: str, prompt: list[int], max_tokens: int | None = 5, seed: int = 0) -> Submit:
    params = SamplingParams(max_tokens=max_tokens, seed=seed)
    return Submit(request_id=request_id, prompt_token_ids=prompt, params=params)


async def collect(stream: RequestStream) -> tuple[list[int], TokenOut | Failed]:
    """All tokens and the last item."""
    found: list[TokenOut | Failed] = []
    while items := await stream.take():
        found += items
    return [i for item in found if isinstance(item, TokenOut) for i in item.token_ids], found[-1]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_many_streams_at_once_get_their_own_tokens() -> None:
    async def test() -> None:
        async with engine(max_num_seqs=16) as client:
            assert client.ready is not None
            assert client.ready.max_num_seqs == 16
            steps: list[StepOutput] = []
            client.on_step = steps.append
            messages = [submit(f"r{i}", [i, 1], max_tokens=1 + i) for i in range(40)]
            streams = [client.submit(m) for m in messages]
            assert client.num_open == 40
            results = await asyncio.gather(*map(collect, streams))
            alone = [await collect(client.submit(m)) for m in messages]
            assert [tokens for tokens, _ in results] == [tokens for tokens, _ in alone]
            assert [len(tokens) for tokens, _ in results] == list(range(1, 41))
            assert client.num_open == 0
            assert client.stats == steps[-1].stats
            assert client.stats is not None
            assert client.stats.num_free_blocks == client.stats.num_blocks

    run(test)


def test_take_gives_everything_that_has_arrived() -> None:
    async def test() -> None:
        async with engine() as client:
            slow = client.submit(submit("slow", [1], max_tokens=20))
            await collect(client.submit(submit("fast", [1], max_tokens=40)))
            items = await slow.take()
            assert len(items) == 20
            assert await slow.take() == []

    run(test)


def test_abort_wakes_the_reader_and_frees_the_pages() -> None:
    async def test() -> None:
        async with engine("null?step_seconds=0.005") as client:
            stream = client.submit(submit("a", [1] * 300, max_tokens=None))
            await stream.take()
            reader = asyncio.create_task(collect(stream))
            await asyncio.sleep(0)
            client.abort(["a", "unknown"])
            _, last = await reader
            assert isinstance(last, TokenOut)
            assert last.finish_reason == "abort"
            await collect(client.submit(submit("b", [2], max_tokens=2)))
            assert client.stats is not None
            assert (client.stats.num_running, client.stats.num_free_blocks) == (0, client.stats.num_blocks)

    run(test)


def test_a_refused_request_fails_with_its_status() -> None:
    async def test() -> None:
        async with engine() as client:
            _, last = await collect(client.submit(submit("a", [1000])))
            assert isinstance(last, Failed)
            assert (last.status, last.param) == (400, "prompt")
            client.submit(submit("b", [1], max_tokens=None))
            with pytest.raises(ValueError, match="request_id must be unique"):
                client.submit(submit("b", [1]))

    run(test)


def test_a_failed_step_leaves_the_process_alive() -> None:
    async def test() -> None:
        async with engine("raise", FAULTS) as client:
            _, last = await collect(client.submit(submit("bad", [TRIGGER])))
            assert isinstance(last, Failed)
            assert (last.status, last.code) == (500, "engine_error")
            tokens, _ = await collect(client.submit(submit("good", [1])))
            assert len(tokens) == 5

    run(test)


@pytest.mark.parametrize("fault", ["kill", "die", "device"])
def test_death_of_the_engine_fails_every_open_request(fault: str) -> None:
    async def test() -> None:
        client = await EngineClient.start(EngineConfig(model=fault), runner=FAULTS)
        await client.wait_ready()
        deaths: list[EngineDead] = []
        client.on_dead = deaths.append
        streams = [client.submit(submit(f"r{i}", [1], max_tokens=None)) for i in range(3)]
        await asyncio.gather(*(stream.take() for stream in streams))
        if fault == "kill":
            os.kill(client.process.pid, signal.SIGKILL)
        else:
            client.submit(submit("trigger", [TRIGGER]))
        for stream in streams:
            _, last = await collect(stream)
            assert isinstance(last, Failed)
            assert (last.status, last.code) == (503, "engine_dead")
        assert deaths == [client.dead]
        words = {"kill": "exit code -9", "die": "exit code 9", "device": "the device does not answer"}
        assert words[fault] in deaths[0].message
        _, last = await collect(client.submit(submit("late", [1])))
        assert isinstance(last, Failed)
        assert last.code == "engine_dead"
        assert await client.shutdown() == {"kill": -9, "die": 9, "device": 1}[fault]

    run(test)


@pytest.mark.parametrize(
    ("model", "runner", "exit_code", "words"),
    [
        ("weights", FAULTS, 4, "expected [4, 4], got [4, 3]"),
        ("memory", FAULTS, 5, "the weights need 9 GiB"),
        ("out of memory", FAULTS, 5, "MemoryError"),
        ("bug", FAULTS, 1, "nonsense"),
        ("null?vocab_size=many", "null", 3, "vocab_size"),
        ("null", "engine.no_such_module", 1, "no_such_module"),
    ],
)
def test_a_start_that_fails_says_why(model: str, runner: str, exit_code: int, words: str) -> None:
    async def test() -> None:
        client = await EngineClient.start(EngineConfig(model=model), runner=runner)
        with pytest.raises(EngineDeadError) as caught:
            await client.wait_ready()
        assert words in str(caught.value)
        assert caught.value.exit_code == exit_code
        assert await client.shutdown() == exit_code

    run(test)


def test_loading_shows_progress_before_ready() -> None:
    async def test() -> None:
        client = await EngineClient.start(EngineConfig(model="null?load_seconds=0.5"), runner="null")
        fractions = []
        while client.ready is None:
            if client.loading is not None:
                fractions.append(client.loading.progress)
            await asyncio.sleep(0.01)
        assert fractions == sorted(fractions)
        assert len(set(fractions)) > 1
        assert await client.shutdown() == 0

    run(test)


def test_shutdown_drains_then_fails_the_rest() -> None:
    async def test() -> None:
        client = await EngineClient.start(EngineConfig(model="null?step_seconds=0.002"), runner="null")
        await client.wait_ready()
        short = client.submit(submit("short", [1], max_tokens=20))
        endless = client.submit(submit("endless", [1], max_tokens=None))
        await endless.take()
        stopping = asyncio.create_task(client.shutdown(drain_timeout=1.5))
        await asyncio.sleep(0)
        _, refused = await collect(client.submit(submit("new", [1])))
        assert isinstance(refused, Failed)
        assert (refused.status, refused.code) == (503, "draining")
        tokens, last = await collect(short)
        assert isinstance(last, TokenOut)
        assert last.finish_reason == "length"
        assert len(tokens) == 20
        _, last = await collect(endless)
        assert isinstance(last, Failed)
        assert last.code == "draining"
        assert await stopping == 0

    run(test)


def test_an_idle_engine_uses_no_cpu_and_ignores_signals_meant_for_the_server() -> None:
    async def test() -> None:
        async with engine() as client:
            await collect(client.submit(submit("a", [1])))
            stat = Path(f"/proc/{client.process.pid}/stat")
            ticks = [stat.read_text().rsplit(")", 1)[1].split()[11:13]]
            os.kill(client.process.pid, signal.SIGTERM)
            os.kill(client.process.pid, signal.SIGINT)
            await asyncio.sleep(0.5)
            ticks.append(stat.read_text().rsplit(")", 1)[1].split()[11:13])
            used = sum(map(int, ticks[1])) - sum(map(int, ticks[0]))
            assert used <= 10, "a loop that polls would have used 50 ticks"
            tokens, _ = await collect(client.submit(submit("b", [1])))
            assert len(tokens) == 5

    run(test)


def test_the_engine_dies_with_its_parent() -> None:
    script = (
        "import asyncio\n"
        "from mmx.config import EngineConfig\n"
        "from mmx.engine.client import EngineClient\n"
        "async def main():\n"
        "    client = await EngineClient.start(EngineConfig(model='null'), runner='null')\n"
        "    await client.wait_ready()\n"
        "    print(client.process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    env = dict(os.environ)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie that waits for its reaper."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_importing_the_client_loads_no_torch() -> None:
    modules = "mmx.engine.client, mmx.scheduler, mmx.engine.null_runner"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    env = dict(os.environ)
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
