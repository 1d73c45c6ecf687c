"""Rank 1 sleeps in a step instead of joining the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mmx.batch import ScheduledBatch
from mmx.config import EngineConfig
from mmx.distributed import Ranks
from mmx.runner import ModelRunner
from mmx.runner import build_runner as build_model_runner
from mmx.runner.sampler import Sampled

LAST_GOOD_STEP = 20


def build_runner(config: EngineConfig, progress: Callable[[str, float], None], ranks: Ranks) -> ModelRunner:
    runner = build_model_runner(config, progress, ranks)
    if ranks.rank == 1:
        fail_late(runner, lambda: time.sleep(60))
    return runner


def fail_late(runner: ModelRunner, fault: Callable[[], Any]) -> None:
    """Let ``fault`` happen in the steps after the first ones."""
    launch = runner.launch

    def faulty(batch: ScheduledBatch) -> Sampled:
        if batch.step > LAST_GOOD_STEP:
            fault()
        return launch(batch)

    runner.launch = faulty  # type: ignore[method-assign]
