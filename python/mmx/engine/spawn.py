"""Starts and ends the processes of this machine's ranks."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence

import msgspec

from mmx.config import EngineConfig
from mmx.engine.process import child_environment, command_of


def spawn_rank(
    config: EngineConfig, runner_module: str, rank: int, local_rank: int, num_local: int
) -> subprocess.Popen[bytes]:
    """Start one rank; it ends with this process."""
    place = msgspec.structs.replace(
        config.place,
        first_rank=rank,
        num_local=1,
        single=True,
        local_rank=local_rank,
        local_world=num_local,
        # Why: Linux ends children with the thread that started them.
        tied=threading.current_thread() is threading.main_thread(),
    )
    command = command_of("mmx.engine.rank", msgspec.structs.replace(config, place=place), runner_module)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=child_environment())


def end_ranks(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Give the processes ``grace`` seconds, then kill what is left; reaps all of them."""
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
    for child in children:
        child.wait()


def use_cpus(local_rank: int, local_world: int, bind: bool) -> int:
    """Threads for one of ``local_world`` processes of this machine; with ``bind`` it also gets processors of
    its own, next to each other."""
    linux = hasattr(os, "sched_getaffinity")
    available = sorted(os.sched_getaffinity(0)) if linux else list(range(os.cpu_count() or 1))
    share = max(1, len(available) // local_world)
    if bind and linux:
        first = local_rank * len(available) // local_world
        os.sched_setaffinity(0, available[first : first + share])
    return share
