"""Stands in for torch_npu on a machine without NPUs: gives torch its device type "npu" and a module of the
same functions over two devices of 64 GiB, which notes what is asked of it. Installed as ``torch_npu``."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GIB = 1 << 30
CALLS: list[str] = []
STATE = {"current": 0, "lost": 0, "reserved": 0}


def _npu() -> types.ModuleType:
    npu = types.ModuleType("torch.npu")

    class NPUGraph:
        def replay(self) -> None:
            CALLS.append("replay")

    @contextmanager
    def graph(recorded: NPUGraph, pool: object = None) -> Iterator[None]:
        assert isinstance(recorded, NPUGraph)
        CALLS.append(f"begin {pool}")
        yield
        CALLS.append("end")

    def synchronize(device: object = None) -> None:
        CALLS.append("synchronize")
        if STATE["lost"]:
            raise RuntimeError("AICore exception\nand its registers")

    npu.NPUGraph, npu.graph, npu.synchronize = NPUGraph, graph, synchronize
    npu.graph_pool_handle = lambda: "pool"
    npu.is_available = lambda: os.environ.get("FAKE_NPUS", "2") != "0"
    npu.is_initialized = lambda: True
    npu.device_count = lambda: int(os.environ.get("FAKE_NPUS", "2"))
    npu.current_device = lambda: STATE["current"]
    npu.set_device = lambda index: STATE.update(current=index)
    npu.mem_get_info = lambda device: (60 * GIB, 64 * GIB)
    npu.empty_cache = lambda: CALLS.append("empty_cache")
    npu.reset_peak_memory_stats = lambda device: CALLS.append("reset_peak")
    npu.memory_reserved = lambda device: 10
    npu.max_memory_reserved = lambda device: STATE["reserved"]
    npu._is_in_bad_fork = lambda: False
    npu.manual_seed_all = lambda seed: None
    return npu


torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", _npu())
