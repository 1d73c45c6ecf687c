"""The server process on a GPU: an fp8 checkpoint in M2.5's layout, two of them, and faults of the device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from mmx import LLM
from mmx.errors import MemoryPlanError
from mmx.model_config import load_model_config
from mmx.model_path import demo_model_path
from models.tiny import VARIANTS, write_tiny_checkpoint
from server.process import Process, server
from unit.tokenizer_helpers import m2_folder

pytestmark = pytest.mark.cuda

POOL_BYTES = 4 << 30
MODEL = "mmx.runner"
FLAGS = ["--device", "cuda", "--max-num-seqs", "4", "--shutdown-timeout", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, random, with a tokenizer."""
    target = tmp_path_factory.mktemp("m2")
    vocab = load_model_config(demo_model_path()).vocab_size
    write_tiny_checkpoint(
        target / "model", "m2", torch.bfloat16, variant=VARIANTS["fp8"] | {"vocab_size": vocab}
    )
    (target / "words").mkdir()
    m2_folder(target / "words")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(target / "words" / name, target / "model" / name)
    return target / "model"


def ask(process: Process, prompt: list[int], max_tokens: int = 8) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        process.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def wait_unhealthy(process: Process) -> None:
    begun = time.monotonic()
    while process.get("/health")[0] != 503:
        assert time.monotonic() - begun < 10
        time.sleep(0.02)


def test_fp8_checkpoint_is_served_and_shares_the_gpu_with_nobody_silently(folder: Path) -> None:
    """In the end its engine process is killed: the stream that is open and /health say so."""
    free, total = torch.cuda.mem_get_info()
    flags = [*FLAGS, "--kv-cache-dtype", "fp8", "--index-kv-dtype", "fp8"]
    with server(MODEL, str(folder), *flags, "--kv-cache-memory-bytes", str(POOL_BYTES)) as process:
        process.ready()
        answer = ask(process, list(range(1, 200)))
        assert answer["usage"]["completion_tokens"] == 8
        assert ask(process, list(range(1, 200)))["choices"][0]["text"] == answer["choices"][0]["text"]

        share = (free - POOL_BYTES / 2) / total
        with pytest.raises(MemoryPlanError, match=r"but \S+ GiB are free: other processes hold the rest"):
            LLM(str(folder), device="cuda", gpu_memory_utilization=share)
        assert ask(process, [5, 6, 7])["usage"]["completion_tokens"] == 8

        stream = process.stream(3000)
        os.kill(process.engine_pid(), signal.SIGKILL)
        wait_unhealthy(process)
        assert b'"code":"engine_dead"' in stream.read()
        assert process.wait() == 1


def test_a_fault_inside_a_kernel_is_said_in_health_and_ends_the_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
    with server("engine.broken_gpu", str(folder), *FLAGS, "--kv-cache-memory-bytes", str(1 << 26)) as process:
        process.ready()
        assert ask(process, [5, 6, 7])["usage"]["completion_tokens"] == 8
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(process, [9] * 20)
        assert refusal.value.code == 503
        assert '"code":"engine_dead"' in refusal.value.read().decode()
        wait_unhealthy(process)
        assert process.get("/health")[1]["status"] == "dead"
        assert process.wait() == 1
        assert any("the GPU has failed" in line for line in process.log)
