"""What an engine takes of its device's memory: decided with numbers before it is taken, and said."""

from __future__ import annotations

import logging
from typing import NamedTuple

from mmx.backend import Backend
from mmx.config import EngineConfig
from mmx.errors import MemoryPlanError

MIB, GIB = 1 << 20, 1 << 30
UTILIZATION = 0.92  # of a GPU, unless the user says otherwise

log = logging.getLogger("mmx.engine")


class Limit(NamedTuple):
    """Bytes an engine may use in all, and how that comes about."""

    num_bytes: int
    rule: str


class Needs(NamedTuple):
    """Bytes beside the pages. ``step``: activations and scratch of the largest step."""

    weights: int
    step: int = 0
    graphs: int = 0

    def __str__(self) -> str:
        return (
            f"weights {size(self.weights)}, steps {size(self.step)}, decode graphs {size(self.graphs)}"
            if self.step
            else f"weights {size(self.weights)}"
        )


def size(num_bytes: int) -> str:
    """For messages."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.1f} MiB"


def memory_limit(config: EngineConfig, backend: Backend) -> Limit:
    """Before anything is taken. Raises MemoryPlanError where others hold what this engine was promised."""
    total, free = backend.total_memory(), backend.free_memory()
    share = config.gpu_memory_utilization
    if share is not None:
        if share * total > free:
            raise MemoryPlanError(
                f"gpu_memory_utilization {share} asks for {size(int(share * total))} of the {size(total)} of "
                f"{backend.name}, but {size(free)} are free: other processes hold the rest"
            )
        return Limit(int(share * total), f"{share:.0%} of all")
    if backend.pool_share is not None:
        return Limit(free, "all that is free")
    if UTILIZATION * total > free:
        log.warning(
            "other processes hold %s of the %s of %s; this engine plans with what is free",
            *(size(total - free), size(total), backend.name),
        )
        return Limit(int(UTILIZATION * free), f"{UTILIZATION:.0%} of what others left free")
    return Limit(int(UTILIZATION * total), f"{UTILIZATION:.0%} of all")


def check_weights(weights: int, limit: Limit, backend: Backend) -> None:
    """Raises MemoryPlanError where ``weights`` bytes are more than may be used."""
    if weights > limit.num_bytes:
        raise MemoryPlanError(
            f"the weights need {size(weights)}, the engine may use {size(limit.num_bytes)} of {backend.name} "
            f"({limit.rule}; {size(backend.free_memory())} are free)"
        )


def pool_budget(config: EngineConfig, backend: Backend, limit: Limit, needs: Needs) -> Limit:
    """Bytes for pages. Raises MemoryPlanError if ``kv_cache_bytes`` does not fit."""
    left = limit.num_bytes - sum(needs)
    if config.kv_cache_bytes is not None:
        if config.kv_cache_bytes > left:
            raise MemoryPlanError(
                f"kv_cache_bytes={config.kv_cache_bytes} ({size(config.kv_cache_bytes)}) does not fit into "
                f"the {size(limit.num_bytes)} that the engine may use of {backend.name} ({limit.rule}): "
                f"{needs}, {size(max(0, left))} are left"
            )
        return Limit(config.kv_cache_bytes, "kv_cache_bytes")
    share = config.kv_cache_free_gpu_memory_fraction
    if share is None:
        share = backend.pool_share
    if share is not None:
        return Limit(max(0, int(left * share)), f"{share:.0%} of the free memory")
    return Limit(max(0, left), f"what is left of {size(limit.num_bytes)} ({limit.rule}) by {needs}")
