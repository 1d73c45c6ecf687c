"""Rank 1 raises in a step."""

from __future__ import annotations

from collections.abc import Callable

from mmx.config import EngineConfig
from mmx.distributed import Ranks
from mmx.runner import ModelRunner
from mmx.runner import build_runner as build_model_runner
from parallel.hanging_runner import fail_late


def build_runner(config: EngineConfig, progress: Callable[[str, float], None], ranks: Ranks) -> ModelRunner:
    runner = build_model_runner(config, progress, ranks)
    if ranks.rank == 1:
        fail_late(runner, refuse)
    return runner


def refuse() -> None:
    raise RuntimeError("a kernel of this rank refused its input")
