"""One rank's runner among others: device, processors, collectives, weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from mmx.backend import resolve_backend, use_local_device
from mmx.config import EngineConfig
from mmx.distributed import CallLog, Ranks
from mmx.engine.leader import Leader, Lost, RankedRunner
from mmx.engine.spawn import use_cpus
from mmx.layout import make_layout
from mmx.model_config import load_model_config

Progress = Callable[[str, float], None]
MODEL_RUNNER = "mmx.runner"


def join_ranks(
    config: EngineConfig, runner_module: str, rank: int, port: int, calls: CallLog, progress: Progress
) -> tuple[Ranks, Any]:
    """Meet the others at the store of rank 0, then build this rank's runner."""
    place, parallel = config.place, config.parallel
    local_world = place.local_world or place.num_local or parallel.world_size
    torch.set_num_threads(use_cpus(place.local_rank, local_world, place.bind_cpus))
    device = use_local_device(config.device, place.local_rank)
    settings = (
        config.kv_cache_bytes,
        config.gpu_memory_utilization,
        config.kv_cache_free_gpu_memory_fraction,
    )
    backend = resolve_backend(config.device)
    share = backend.pool_share
    if device.type == "cpu" and share is not None and settings == (None, None, None):
        # Why: the ranks of one machine have one memory.
        config = msgspec.structs.replace(config, kv_cache_free_gpu_memory_fraction=share / local_world)
    model_config = load_model_config(Path(config.model), config.dequantize_weights or not backend.has_fp8)
    ranks = Ranks.join(
        model_config,
        make_layout(parallel, model_config),
        rank,
        device=device,
        address=place.address,
        port=port,
        timeout=max(parallel.rendezvous_timeout, parallel.step_timeout),
        log=calls,
        maps_memory=not parallel.disable_custom_all_reduce,
    )
    runner = importlib.import_module(runner_module).build_runner(config, progress, ranks)
    return ranks, runner


def start_runner(config: EngineConfig, progress: Progress) -> Any:
    """The runner of one device, or the one that stands for several ranks of this machine; ``close`` ends
    these."""
    if config.parallel.world_size > 1:
        return lead_ranks(config, MODEL_RUNNER, progress)
    return importlib.import_module(MODEL_RUNNER).build_runner(config, progress)


def lead_ranks(
    config: EngineConfig,
    runner_module: str,
    progress: Progress,
    on_lost: Callable[[Lost], None] = lambda lost: None,
) -> RankedRunner:
    """Start, gather and join all ranks of ``config.parallel``; the runner that stands for all of them.

    ``on_lost`` hears of a lost rank while a step may still wait for it.
    Raises ConfigError, WeightsError, MemoryPlanError or LaunchError.
    """
    layout = make_layout(config.parallel, load_model_config(Path(config.model)))
    calls = CallLog()
    leader = Leader(config, runner_module, calls, on_lost)
    try:
        progress("gather ranks", 0.0)
        port = leader.gather()
        _, runner = join_ranks(config, runner_module, 0, port, calls, progress)
    except Exception as error:
        lost = leader.lost
        leader.end()
        if lost is not None:
            raise lost from error
        raise
    return RankedRunner(runner, leader, layout)
