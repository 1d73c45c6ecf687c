"""A sweep: its points, its limits, its tables."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from bench.helpers import DEMO, FakeServer, Play, completion, ending, fake_server
from mmx.bench.plot import PANELS, THROUGHPUT, draw
from mmx.bench.sweep import Plan, interval, make_plan, markdown, sweep

ANSWER = Play([(0.1, completion("a")), (0.2, completion("b", "length") + ending(8, 2))])


def plan(server: FakeServer, folder: Path, *flags: str) -> Plan:
    common = ("--base-url", server.url, "--tokenizer", str(DEMO), "--no-test-input", "--disable-tqdm")
    return make_plan([*common, "--result-dir", str(folder), "--concurrency", "1", "--rounds", "2", *flags])


async def test_points_and_summaries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with fake_server(*[ANSWER] * 8) as server:
        points = await sweep(plan(server, tmp_path, "--shapes", "8:2,9:3", "--repeat", "2"), server.clock)
        prompts = [json.dumps(body["prompt"]) for body in server.bodies]
        assert [body["max_tokens"] for body in server.bodies] == [2] * 4 + [3] * 4
    assert len(set(prompts)) == 8, "a repeated prompt would measure the prefix cache"
    names = {f"{s}-concurrency1-run{r}.json" for s in ("8x2", "9x3") for r in (0, 1)}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        f"summary.{e}" for e in ("csv", "json", "md", "png")
    }
    assert json.loads((tmp_path / "8x2-concurrency1-run1.json").read_text())["mmx"]["round"] == 1
    first = json.loads((tmp_path / "summary.json").read_text())[0]
    assert (first["shape"], first["concurrency"], first["runs"], first["error_rate"]) == ("8x2", 1, 2, 0)
    assert first["output_throughput"] == pytest.approx(10)
    assert first["mean_ttft_ms"] == pytest.approx(100)
    assert first["mean_ttft_ms_ci95"] == pytest.approx(0, abs=1e-6)
    with (tmp_path / "summary.csv").open() as file:
        assert [row["shape"] for row in csv.DictReader(file)] == ["8x2", "9x3"]
    table = (tmp_path / "summary.md").read_text()
    assert table == markdown(points)
    assert capsys.readouterr().out.endswith(table)
    assert table.splitlines()[2].startswith("| 8x2 | 1 | 5.00 ± 0.00 | 10.00 ± 0.00 | ")


async def test_limits_end_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--shapes", "8:2", "--repeat", "1", "--concurrency", "1,1")
    async with fake_server(*[ANSWER] * 4) as server:
        assert len(await sweep(plan(server, tmp_path, *flags, "--max-ttft-ms", "99"), server.clock)) == 1
    assert "shape 8x2 ends at concurrency 1: the mean TTFT is 100 ms" in capsys.readouterr().err
    async with fake_server(ANSWER, Play([(0.0, b"no")], status=500)) as server:
        assert len(await sweep(plan(server, tmp_path, *flags), server.clock)) == 1
    assert "50.0% of the requests failed" in capsys.readouterr().err


def test_picture_has_a_point_per_concurrency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {key + end: 1.0 for key in (*PANELS, THROUGHPUT) for end in ("", "_ci95")}
    table = [row | {"shape": "8x2", "concurrency": c, THROUGHPUT: 10.0 * c} for c in (1, 2, 4)]
    table.append(row | {"shape": "9x3", "concurrency": 1, "mean_ttft_ms": None, "mean_ttft_ms_ci95": None})
    drawn: list[tuple[str, list[float]]] = []

    def errorbar(axes: object, x: object, y: list[float], *, label: str, **style: object) -> None:
        drawn.append((label, list(y)))

    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", errorbar)
    draw(table, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    curve, single = ("8x2", [10.0, 20.0, 40.0]), ("9x3", [1.0])
    assert drawn == [curve, single, curve, curve, single]


async def test_without_matplotlib_the_tables_remain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    async with fake_server(*[ANSWER] * 2) as server:
        await sweep(plan(server, tmp_path, "--shapes", "8:2", "--repeat", "1"), server.clock)
    assert "summary.png needs matplotlib: pip install 'mmx[plot]'" in capsys.readouterr().err
    assert (tmp_path / "summary.md").exists() and not (tmp_path / "summary.png").exists()


def test_interval() -> None:
    assert interval([1.0]) is None
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert interval([0.0, 1.0] * 50) == pytest.approx(1.96 * 0.50252 / 10, rel=1e-4)


def test_shapes_are_for_random_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_plan(["--shapes", "8:2", "--dataset-name", "prefix_repetition"])
    assert "--shapes: prefix_repetition has lengths of its own" in capsys.readouterr().err
