"""The client's process against the server's process with an engine that needs no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.helpers import DEMO
from server.process import server


def mmx(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ)
    command = [sys.executable, "-m", "mmx", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "flags",
    [
        ("--backend", "openai", "--random-ids", "--tokenize-on-client"),
        ("--backend", "vllm"),
        ("--backend", "openai-chat", "--output-style", "trt"),
    ],
    ids=["ids", "text", "chat"],
)
def test_every_token_is_counted(flags: tuple[str, ...], tmp_path: Path) -> None:
    with server("null?step_seconds=0.002") as process:
        process.ready()
        done = mmx(
            "bench", "serve", "--base-url", process.url, "--tokenizer", str(DEMO), "--num-prompts", "6",
            "--max-concurrency", "3", "--random-input-len", "40", "--random-output-len", "12", "--ignore-eos",
            "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json", *flags,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6/6 requests" in done.stderr
    assert "Successful requests:                     6 " in done.stdout
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["completed"], found["failed"]) == (6, 0)
    assert found["output_lens"] == [12] * 6
    assert found["input_lens"] == [40] * 6
    assert 1 <= found["max_concurrent_requests"] <= 3
    assert found["mmx"]["server"]["version"]
    assert found["mmx"]["requests_without_itl_per_token"] == 0
    # What the engine takes is a lower bound that no load of the machine can change.
    assert all(ttft >= 0.002 for ttft in found["ttfts"])
    assert all(latency >= 0.02 for latency in found["latencies"])


def test_server_that_is_not_there() -> None:
    done = mmx("bench", "serve", "--port", "9", "--model", str(DEMO), "--ready-check-timeout-sec", "0")
    assert done.returncode == 1
    assert "mmx bench: the test request failed: ClientConnectorError" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_is_light() -> None:
    code = "import sys, mmx.bench.serve; sys.exit('torch' in sys.modules or 'mmx.server' in sys.modules)"
    env = dict(os.environ)
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
