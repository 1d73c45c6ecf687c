"""When requests go out."""

from __future__ import annotations

import asyncio
import math
import statistics
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import cast

import pytest

from bench.helpers import DEMO, options
from mmx.bench.client import Client
from mmx.bench.dataset import Sample
from mmx.bench.events import Answer
from mmx.bench.load import arrival_times, run_load
from mmx.bench.result_file import result_path
from mmx.bench.serve import tokenizer_folder


def gaps(*flags: str, n: int = 4000) -> list[float]:
    times = [0.0, *arrival_times(options(*flags), n, Random(1))]
    return [b - a for a, b in pairwise(times)]


def test_all_at_once() -> None:
    assert gaps(n=5) == [0.0] * 5


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_rate_and_burstiness(burstiness: float, variation: float) -> None:
    """The last of n is due at n / rate; gaps of a gamma law vary by 1 / sqrt(shape)."""
    found = gaps("--request-rate", "50", "--burstiness", str(burstiness))
    assert sum(found) == pytest.approx(4000 / 50)
    assert statistics.pstdev(found) * 50 == pytest.approx(variation, rel=0.1)


def test_seed_decides_the_arrivals() -> None:
    assert gaps("--request-rate", "50") == gaps("--request-rate", "50")


@pytest.mark.parametrize(("strategy", "middle"), [("linear", 50.5), ("exponential", 10.0)])
def test_ramp_up(strategy: str, middle: float) -> None:
    flags = ("--ramp-up-strategy", strategy, "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "100")
    found = gaps(*flags, "--burstiness", "100")
    around = found[1900:2100]
    assert 1 / statistics.fmean(around) == pytest.approx(middle, rel=0.1)


class Served:
    """In the place of a client: each request takes a second of a clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[float, str]] = []
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self.now + seconds, woken))
        await woken.wait()

    async def pass_time(self) -> None:
        """Whenever nothing else can go on, move the clock to the next sleeper."""
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers:
                self._sleepers.sort(key=lambda sleeper: sleeper[0])
                self.now, woken = self._sleepers.pop(0)
                woken.set()

    async def send(self, sample: Sample, request_id: str, arrival: float) -> Answer:
        start = self.now
        self.sent.append((start, request_id))
        await self.sleep(1.0)
        return Answer(arrival=arrival, start=start, end=self.now)


@pytest.mark.parametrize(
    ("flags", "starts"),
    [
        ((), [0, 0, 0, 0]),
        (("--max-concurrency", "2"), [0, 0, 1, 1]),
        (("--max-concurrency", "1"), [0, 1, 2, 3]),
        (("--request-rate", "2", "--burstiness", "1e9"), [0.5, 1.0, 1.5, 2.0]),
        (("--request-rate", "2", "--burstiness", "1e9", "--max-concurrency", "1"), [0.5, 1.5, 2.5, 3.5]),
    ],
)
async def test_starts(flags: tuple[str, ...], starts: list[float]) -> None:
    served = Served()
    chosen = options("--disable-tqdm", "--request-id-prefix", "r", *flags)
    samples = [Sample(prompt="x")] * 4
    time = asyncio.create_task(served.pass_time())
    answers = await run_load(cast(Client, served), chosen, samples, served.sleep)
    time.cancel()
    assert [answer.start for answer in answers] == pytest.approx(starts, abs=1e-3)
    assert [name for _, name in served.sent] == ["r0", "r1", "r2", "r3"]
    due = [0.0] * 4 if chosen.request_rate == math.inf else [0.5, 1.0, 1.5, 2.0]
    assert [answer.arrival for answer in answers] == pytest.approx(due, abs=1e-3)


def test_file_names(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert str(result_path(options(), "org/m3", now)) == "openai-infqps-m3-20260102-030405.json"
    flags = ("--label", "x", "--request-rate", "2.5", "--max-concurrency", "8", "--result-dir", "d")
    assert str(result_path(options(*flags), "m3", now)) == "d/x-2.5qps-concurrency8-m3-20260102-030405.json"
    assert str(result_path(options("--result-filename", "r"), "m3", now)) == "r"


def test_tokenizer_of_a_downloaded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert tokenizer_folder(options("--model", "org/m3"), "org/m3") is None
    snapshot = tmp_path / "models--org--m3" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(options("--model", "org/m3"), "org/m3") == snapshot
    assert tokenizer_folder(options(), str(DEMO)) == DEMO
    assert tokenizer_folder(options(), "mmx-demo") == DEMO
    with pytest.raises(ValueError, match="--tokenizer: 'org/other' is neither"):
        tokenizer_folder(options("--tokenizer", "org/other"), "org/m3")
