"""The server as a process of its own, with the null runner in a real engine process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.process import server


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def refused(*flags: str) -> tuple[int, str]:
    env = dict(os.environ)
    command = [sys.executable, "-m", "mmx.server", *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_sigterm_drains_and_leaves_nothing() -> None:
    with server() as process:
        process.ready()
        engine = process.engine_pid()
        stream = process.stream(60)
        process.child.send_signal(signal.SIGTERM)
        process.wait_for("draining: 1 requests are open")
        assert process.get("/health")[0] == 503
        text = stream.read()
        assert text.rstrip().endswith(b"data: [DONE]")
        assert b'"finish_reason":"length"' in text
        assert process.wait() == 0
        assert gone(engine)


def test_all_processes_print_as_they_are_told() -> None:
    flags = ("--tensor-parallel-size", "2", "--max-model-len", "512")
    with server("model", *flags, "--log-format", "json") as process:
        process.ready()
        process.child.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        speakers = {json.loads(line)["logger"] for line in process.log}
        assert speakers >= {"mmx.server", "mmx.engine", "mmx.engine rank 1"}
    code, text = refused("--port", "0", "--log-level", "error", "--chat-template", "/none.jinja")
    assert (code, text.count("\n")) == (3, 1), text


def test_second_signal_ends_at_once() -> None:
    with server() as process:
        process.ready()
        engine = process.engine_pid()
        stream = process.stream(100_000)
        process.child.send_signal(signal.SIGTERM)
        process.wait_for("draining")
        process.child.send_signal(signal.SIGINT)
        assert b'"code":"draining"' in stream.read()
        assert process.wait() == 0
        assert gone(engine)


def test_killed_engine_process() -> None:
    with server("null?step_seconds=0.01", "--shutdown-timeout", "1") as process:
        process.ready()
        stream = process.stream(100_000)
        engine = process.engine_pid()
        os.kill(engine, signal.SIGKILL)
        killed = time.monotonic()
        while process.get("/health")[0] != 503:
            assert time.monotonic() - killed < 5
            time.sleep(0.02)
        assert b'"code":"engine_dead"' in stream.read()
        assert process.wait() == 1
        assert gone(engine)


def test_killed_server_takes_its_engine_along() -> None:
    with server() as process:
        process.ready()
        engine = process.engine_pid()
        process.child.kill()
        process.child.wait()
        wait_gone(engine)


def test_the_port_answers_while_loading_and_sigterm_ends_loading() -> None:
    with server("null?load_seconds=20") as process:
        process.wait_for("loading: load")
        status, body = process.get("/health")
        assert (status, body["status"], body["phase"]) == (503, "loading", "load")
        process.child.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_port_in_use_exits_6() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = refused("--port", str(port))
        assert code == 6
        assert text == f"mmx serve: can not listen on 127.0.0.1 port {port}: Address already in use\n"


def test_wrong_usage_exits_2() -> None:
    code, text = refused("--prot", "1")
    assert (code, text) == (2, "mmx serve: unknown flag '--prot'; did you mean --port?\n")


def test_missing_model_exits_3() -> None:
    code, text = refused("/nowhere/at/all", "--port", "0")
    assert code == 3
    assert "Traceback" not in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "part"),
    [("--help", "usage: mmx serve"), ("--version", "mmx 0."), ("--help=markdown", "| flag |")],
)
def test_words_that_only_print(word: str, part: str) -> None:
    env = dict(os.environ)
    command = [sys.executable, "-m", "mmx", "serve", word]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, part in done.stdout) == (0, True)


def test_mmx_command() -> None:
    env = dict(os.environ)
    for words, code, part in (
        (["--version"], 0, "mmx 0."),
        (["info"], 0, "aiohttp"),
        ([], 0, "usage: mmx"),
        (["sevre"], 2, ""),
    ):
        command = [sys.executable, "-m", "mmx", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code
        assert part in done.stdout
