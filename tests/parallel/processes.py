"""Processes of servers and ranks: who belongs to whom, and that nobody is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def children(pid: int) -> list[int]:
    """Processes that any thread of ``pid`` has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return sorted(found)


def ranks_of(pid: int) -> list[int]:
    """The rank processes below ``pid``, at any depth."""
    below = children(pid)
    for child in list(below):
        below += ranks_of(child)
    return [child for child in below if b"mmx.engine.rank" in command(child)]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def gone(pid: int) -> bool:
    """Ended, perhaps not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_gone(pids: Sequence[int], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if not gone(pid)]:
        assert time.monotonic() < deadline, f"processes {left} are still there"
        time.sleep(0.02)


def start(words: Sequence[str], log: Path, **environ: str) -> subprocess.Popen[bytes]:
    """A command of this Python in a session of its own, its output in ``log``."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def free_port(address: str = "127.0.0.1") -> int:
    import socket

    with socket.create_server((address, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
