"""Rank 1 has no memory for its share."""

from __future__ import annotations

from collections.abc import Callable

from mmx.config import EngineConfig
from mmx.distributed import Ranks
from mmx.errors import MemoryPlanError
from mmx.runner import ModelRunner
from mmx.runner import build_runner as build_model_runner


def build_runner(config: EngineConfig, progress: Callable[[str, float], None], ranks: Ranks) -> ModelRunner:
    if ranks.rank == 1:
        raise MemoryPlanError("rank 1 has no memory")
    return build_model_runner(config, progress, ranks)
