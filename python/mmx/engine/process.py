"""What the processes of an engine have in common: arguments, tie to the parent, exit codes."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

import mmx
from mmx import env
from mmx.config import EngineConfig

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
DEFAULT_RUNNER = "mmx.runner"
OUT_OF_MEMORY_EXIT_CODE = 5


def parse_arguments(prog: str, argv: Sequence[str] | None, *, fd: bool = False) -> argparse.Namespace:
    """``--config JSON``, ``--runner MODULE`` and, with ``fd``, ``--fd N``."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    if fd:
        parser.add_argument("--fd", type=int, required=True)
    read_config = partial(msgspec.json.decode, type=EngineConfig)
    parser.add_argument("--config", type=read_config, required=True)
    parser.add_argument("--runner", default=DEFAULT_RUNNER)
    return parser.parse_args(argv)


def command_of(module: str, config: EngineConfig, runner: str) -> list[str]:
    """The command of a process that reads ``parse_arguments``."""
    settings = msgspec.json.encode(config).decode()
    return [sys.executable, "-m", module, "--config", settings, "--runner", runner]


def child_environment() -> dict[str, str]:
    """Ours, with this very package first on the import path."""
    inherited = env.environment()
    parent = str(Path(mmx.__file__).resolve().parent.parent)
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, [parent, inherited.get("PYTHONPATH")]))}


def spare_what_is_there() -> None:
    """Let the garbage collector look at new objects only. Why: those of all imports take it 0.1 s, in the
    middle of a step."""
    gc.collect()
    gc.freeze()


def bind_to_parent(tied: bool = True) -> None:
    """Leave the signals of terminals and service managers to the parent; if ``tied``, end with it (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if tied and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_code_of(error: BaseException) -> int:
    """The code of the process that ends with ``error``."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY_EXIT_CODE
    return int(getattr(error, "exit_code", 1))
