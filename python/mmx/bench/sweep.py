"""``mmx bench sweep``: the same load at growing concurrency, for several shapes, as table and picture."""

from __future__ import annotations

import argparse
import asyncio
import csv
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mmx.bench.client import Clock
from mmx.bench.options import parse
from mmx.bench.plot import draw
from mmx.bench.serve import BenchError, run

# Column of the tables -> key of the result.
COLUMNS = {
    "req/s": "request_throughput",
    "output tok/s": "output_throughput",
    "total tok/s": "total_token_throughput",
    "user tok/s": "user_throughput",
    "TTFT ms": "mean_ttft_ms",
    "P99 TTFT ms": "p99_ttft_ms",
    "TPOT ms": "mean_tpot_ms",
    "P99 ITL/token ms": "p99_itl_per_token_ms",
    "E2EL ms": "mean_e2el_ms",
}
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal one is near enough.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL_QUANTILE = 1.96


class Plan(argparse.Namespace):
    """``shapes``: input and output tokens, None for what the data set has; limits stop a shape."""

    concurrency: list[int]
    shapes: list[tuple[int, int] | None]
    rounds: int
    repeat: int
    max_ttft_ms: float
    max_error_rate: float
    result_dir: str | None
    folder: Path
    seed: int
    rest: list[str]


@dataclass(frozen=True)
class Point:
    """The repeats of one shape at one concurrency."""

    shape: tuple[int, int] | None
    concurrency: int
    results: list[dict[str, Any]]

    def values(self, key: str) -> list[float]:
        """What the repeats measured, without those that could not."""
        return [r[key] for r in self.results if r[key] is not None]

    @property
    def error_rate(self) -> float:
        """Failed requests of all, 0 to 1."""
        failed = sum(r["failed"] for r in self.results)
        return float(failed / sum(r["num_prompts"] for r in self.results))


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 1 if a point could not be measured."""
    plan = make_plan(argv)
    try:
        asyncio.run(sweep(plan))
    except (BenchError, ValueError, OSError) as error:
        print(f"mmx bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def make_plan(argv: Sequence[str]) -> Plan:
    """Flags of the sweep; all others are those of serve. Wrong usage ends the process with 2."""
    parser = argparse.ArgumentParser(
        prog="mmx bench sweep", description="All further flags are those of serve.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--concurrency", type=_counts, default=[1, 2, 4, 8, 16, 32, 64, 128], metavar="1,2,4")
    add("--shapes", type=_shapes, default=[None], metavar="IN:OUT,...", help="tokens, random data only")
    add("--rounds", type=int, default=5, help="requests of a point: concurrency x rounds")
    add("--repeat", type=int, default=3, help="runs of a point, each with other prompts")
    add("--max-ttft-ms", type=float, default=math.inf, help="a shape ends when its mean TTFT is above")
    add("--max-error-rate", type=float, default=0.0, help="a shape ends when its failed share is above")
    add("--result-dir", help="by default sweep-<time>")
    add("--seed", type=int, default=0)
    plan = Plan()
    _, plan.rest = parser.parse_known_args(argv, plan)
    if plan.rounds < 1 or plan.repeat < 1:
        parser.error("--rounds and --repeat: expected a whole number from 1")
    options = parse(plan.rest)
    if plan.shapes != [None] and options.dataset_name != "random":
        parser.error(f"--shapes: {options.dataset_name} has lengths of its own")
    plan.folder = Path(plan.result_dir or f"sweep-{datetime.now():%Y%m%d-%H%M%S}")
    return plan


async def sweep(plan: Plan, clock: Clock = time.perf_counter) -> list[Point]:
    """Measure all points. After each one the summaries are written, so an interrupted sweep has its table."""
    points: list[Point] = []
    seed = plan.seed
    for shape in plan.shapes:
        for concurrency in plan.concurrency:
            results = []
            for repeat in range(plan.repeat):
                flags = _flags(plan, shape, concurrency, repeat, seed)
                results.append(await run(parse(flags), flags, clock, round_idx=repeat))
                seed += 1
            points.append(Point(shape, concurrency, results))
            write_summaries(plan.folder, points)
            if reason := _reason_to_stop(plan, points[-1]):
                print(f"shape {_name(shape)} ends at concurrency {concurrency}: {reason}", file=sys.stderr)
                break
    try:
        draw(rows(points), plan.folder / "summary.png")
    except ImportError:
        print("mmx bench: summary.png needs matplotlib: pip install 'mmx[plot]'", file=sys.stderr)
    print(markdown(points), end="")
    return points


def _flags(plan: Plan, shape: tuple[int, int] | None, concurrency: int, repeat: int, seed: int) -> list[str]:
    """The command line of one run. Why a new seed: prompts of an earlier run are in the prefix cache."""
    flags = [
        *plan.rest,
        "--max-concurrency",
        str(concurrency),
        "--num-prompts",
        str(concurrency * plan.rounds),
    ]
    if shape is not None:
        flags += ["--random-input-len", str(shape[0]), "--random-output-len", str(shape[1])]
    name = f"{_name(shape)}-concurrency{concurrency}-run{repeat}.json"
    return [*flags, "--seed", str(seed), "--save-result", "--result-dir", str(plan.folder),
            "--result-filename", name]  # fmt: skip


def _reason_to_stop(plan: Plan, point: Point) -> str:
    """Empty when the next concurrency is worth measuring."""
    if point.error_rate > plan.max_error_rate:
        return f"{100 * point.error_rate:.1f}% of the requests failed"
    ttfts = point.values("mean_ttft_ms")
    if ttfts and statistics.fmean(ttfts) > plan.max_ttft_ms:
        return f"the mean TTFT is {statistics.fmean(ttfts):.0f} ms"
    return ""


def interval(values: Sequence[float]) -> float | None:
    """Half width of the 95 % interval of the mean, by Student's t; None below two values."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per point: shape, concurrency, error rate; mean and interval of each column, by result key."""
    found = []
    for point in points:
        row: dict[str, Any] = {"shape": _name(point.shape), "concurrency": point.concurrency}
        row |= {"runs": len(point.results), "error_rate": point.error_rate}
        for key in COLUMNS.values():
            values = point.values(key)
            row[key] = statistics.fmean(values) if values else None
            row[key + "_ci95"] = interval(values)
        found.append(row)
    return found


def markdown(points: Sequence[Point]) -> str:
    """A table; ± is the 95 % interval of the mean over runs."""
    lines = ["| " + " | ".join(["shape", "concurrency", *COLUMNS]) + " |"]
    lines.append("|" + " --- |" * (2 + len(COLUMNS)))
    for row in rows(points):
        cells = [row["shape"], str(row["concurrency"])]
        for key in COLUMNS.values():
            around = row[key + "_ci95"]
            mean = "n/a" if row[key] is None else f"{row[key]:.2f}"
            cells.append(mean if around is None else f"{mean} ± {around:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_summaries(folder: Path, points: Sequence[Point]) -> None:
    """``summary.json``, ``summary.csv`` and ``summary.md``."""
    table = rows(points)
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(table)) + b"\n")
    (folder / "summary.md").write_text(markdown(points))
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def _name(shape: tuple[int, int] | None) -> str:
    return "dataset" if shape is None else f"{shape[0]}x{shape[1]}"


def _counts(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1, got {text!r}")
    return values


def _shapes(text: str) -> list[tuple[int, int] | None]:
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"expected IN:OUT,IN:OUT, got {text!r}")
    return [(int(pair[0]), int(pair[1])) for pair in pairs]
