"""When each request goes out, and how many are in flight."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TextIO

from mmx.bench.client import Client
from mmx.bench.dataset import Sample
from mmx.bench.events import Answer
from mmx.bench.options import Options

Sleep = Callable[[float], Awaitable[object]]


def arrival_times(options: Options, num_requests: int, rng: Random) -> list[float]:
    """Seconds after the start at which each request is due.

    Gaps are gamma distributed with shape ``burstiness`` and mean 1/rate. At a constant rate they are scaled
    so that the last of n requests is due at n/rate.
    """
    if options.ramp_up_strategy is None and math.isinf(options.request_rate):
        return [0.0] * num_requests
    times, now = [], 0.0
    for i in range(num_requests):
        rate = _rate_at(options, i / num_requests)
        now += rng.gammavariate(options.burstiness, 1 / (rate * options.burstiness))
        times.append(now)
    if options.ramp_up_strategy is None and now > 0:
        times = [t * num_requests / options.request_rate / now for t in times]
    return times


def _rate_at(options: Options, share: float) -> float:
    """Requests/s after this share of the requests."""
    first, last = options.ramp_up_start_rps, options.ramp_up_end_rps
    if first is None or last is None:
        return options.request_rate
    if options.ramp_up_strategy == "linear":
        return first + (last - first) * share
    return float(first * (last / first) ** share)


class Progress:
    """One line on a terminal, else a line per tenth."""

    def __init__(self, total: int, out: TextIO | None) -> None:
        self._total = total
        self._out = out
        self._done = 0
        self._failed = 0

    def add(self, answer: Answer) -> None:
        """Count an answer and show the count where a line is due."""
        self._done += 1
        self._failed += bool(answer.error)
        if self._out is None:
            return
        text = f"{self._done}/{self._total} requests" + (f", {self._failed} failed" if self._failed else "")
        if self._out.isatty():
            end = "\n" if self._done == self._total else ""
            self._out.write(f"\r{text}{end}")
        elif self._done * 10 // self._total > (self._done - 1) * 10 // self._total:
            self._out.write(text + "\n")
        self._out.flush()


async def run_load(
    client: Client, options: Options, samples: Sequence[Sample], sleep: Sleep = asyncio.sleep
) -> list[Answer]:
    """Send all samples as the flags say; answers in the order of the samples."""
    due = arrival_times(options, len(samples), Random(options.seed))
    limit = asyncio.Semaphore(options.max_concurrency or len(samples))
    progress = Progress(len(samples), sys.stderr if options.progress else None)
    begin = client.clock()

    async def one(index: int, sample: Sample) -> Answer:
        async with limit:
            name = f"{options.request_id_prefix}{index}"
            answer = await client.send(sample, name, arrival=begin + due[index])
        progress.add(answer)
        return answer

    tasks = []
    for index, sample in enumerate(samples):
        wait = begin + due[index] - client.clock()
        if wait > 0:
            await sleep(wait)
        tasks.append(asyncio.create_task(one(index, sample)))
    return list(await asyncio.gather(*tasks))
