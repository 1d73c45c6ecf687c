"""Splits what the GPU did during some calls by kernel, and says how long it idled between steps."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

FIRST_KERNEL = "embedding_kernel"  # every step has one
SHOWN = 24


class Interval(NamedTuple):
    """A kernel or copy on the GPU; times in microseconds."""

    name: str
    begin: float
    end: float


def gpu_intervals(trace: profile) -> list[Interval]:
    """Everything that ran on the GPU, in order."""
    found = []
    on_gpu = torch.autograd.DeviceType.CUDA
    for event in trace.events() or ():
        begin, end = event.time_range.start, event.time_range.end
        if event.device_type == on_gpu and end > begin:
            found.append(Interval(short_name(event.name), begin, end))
    return sorted(found, key=lambda interval: interval.begin)


def short_name(name: str) -> str:
    """A kernel's name without namespaces, return type, template arguments and parameters."""
    name = re.sub(r"\(anonymous namespace\)::", "", name)
    head = re.split(r"[<(]", name.removeprefix("void "))[0]
    return head.rsplit("::", 1)[-1].strip()[:60] or name[:60]


def idle_time(intervals: list[Interval]) -> float:
    """Microseconds within the span of the intervals in which none of them ran."""
    idle, until = 0.0, intervals[0].begin
    for interval in intervals:
        idle += max(0.0, interval.begin - until)
        until = max(until, interval.end)
    return idle


def between_steps(intervals: list[Interval]) -> float:
    """Microseconds of idleness from each step's sampler to the next step's first kernel."""
    idle, until, open_window = 0.0, intervals[0].begin, False
    for interval in intervals:
        if open_window:
            idle += max(0.0, interval.begin - until)
        until = max(until, interval.end)
        if interval.name == "sample_kernel":
            open_window = True
        elif interval.name == FIRST_KERNEL:
            open_window = False
    return idle


def timeline(intervals: list[Interval], num_steps: int) -> list[dict[str, Any]]:
    """What ran in one step, in order, with medians over the steps, in microseconds: ``lead`` from the latest
    end so far to its begin (negative: it began early), ``took``, and ``added``, by which it moved that end.
    Empty where steps do not run the same kernels."""
    names = [interval.name for interval in intervals]
    count, rest = divmod(len(intervals), num_steps)
    if rest or names != names[:count] * num_steps:
        return []
    until, rows = intervals[0].begin, []
    for _, begin, end in intervals:
        rows.append((begin - until, end - begin, max(0.0, end - until)))
        until = max(until, end)
    medians = [
        [statistics.median(column) for column in zip(*rows[i::count], strict=True)] for i in range(count)
    ]
    return [
        {"name": name, "lead": round(lead, 2), "took": round(took, 2), "added": round(added, 2)}
        for name, (lead, took, added) in zip(names, medians, strict=False)
    ]


def profile_steps(run: Callable[[], object], title: str, num_steps: int | None = None) -> dict[str, Any]:
    """Run under the profiler and print a table; ``num_steps`` None: as many as there were first kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    intervals = gpu_intervals(trace)
    if not intervals:
        raise RuntimeError("the profiler recorded no kernel")
    steps = num_steps or max(1, sum(interval.name == FIRST_KERNEL for interval in intervals))
    span = max(interval.end for interval in intervals) - intervals[0].begin
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for interval in intervals:
        totals[interval.name][0] += interval.end - interval.begin
        totals[interval.name][1] += 1
    idle, between = idle_time(intervals), between_steps(intervals)
    print(
        f"{title}: {span / steps:.1f} us a step, idle {100 * idle / span:.2f} % "
        f"({100 * between / span:.2f} % between steps)"
    )
    ordered = sorted(totals.items(), key=lambda item: -item[1][0])
    for name, (total, count) in ordered[:SHOWN]:
        print(f"  {total / steps:10.1f} us {count / steps:7.1f} x {100 * total / span:6.2f} %  {name}")
    return {
        "title": title,
        "step_us": round(span / steps, 1),
        "idle_share": round(idle / span, 4),
        "idle_between_steps_share": round(between / span, 4),
        "timeline": timeline(intervals, steps),
        "kernels_us": {name: [round(t / steps, 2), round(n / steps, 2)] for name, (t, n) in ordered},
    }
