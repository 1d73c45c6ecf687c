"""Every layout gives the tokens of one rank in fp32, holds only its share, and calls what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from parallel.layouts import CASES, collectives, page_bytes, weight_bytes
from parallel.program import WORLD

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of all cases, from one start of four processes."""
    target = tmp_path_factory.mktemp("layouts")
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", "-m", "parallel.program", str(rank), str(target)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(errors)
    return target


@pytest.mark.parametrize("name", CASES)
def test_layout(name: str, folder: Path) -> None:
    case = CASES[name]
    report: dict[str, Any] = msgspec.json.decode((folder / f"{name}.json").read_bytes())
    assert report["tokens"] == report["alone"]
    assert len(report["ranks"]) == case.world
    for rank in report["ranks"]:
        assert rank["weight_bytes"] == weight_bytes(case)
        assert rank["page_bytes"] == page_bytes(case)
        expected = collectives(case, rank["forwards"], rank["busy"], rank["logits"], rank["samplings"])
        assert rank["calls"] == {"/".join(call): count for call, count in expected.items()}
        assert rank["forwards"] >= rank["busy"] > 0
