"""What torch offers alike for all accelerators: memory counters, one planner per device, recorded kernels."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmx.errors import DeviceLostError, first_line

PATIENCE_SECONDS = 120.0
GRAPHS = {"cuda": "CUDAGraph", "npu": "NPUGraph"}

log = logging.getLogger("mmx.engine")


class Accelerator:
    """A device behind ``torch.cuda`` or a module with the same functions."""

    has_graphs = True
    pool_share: float | None = None

    def __init__(self, api: Any, device: torch.device, identity: str, noun: str) -> None:
        """``identity`` tells the device from all others of this machine; ``noun`` is for messages."""
        self._api = api
        self._identity = identity
        self._noun = noun
        self.device = device

    def total_memory(self) -> int:
        return int(self._api.mem_get_info(self.device)[1])

    def free_memory(self) -> int:
        return int(self._api.mem_get_info(self.device)[0])

    @contextmanager
    def planning(self) -> Iterator[None]:
        """A lock per device among the processes of this machine."""
        fd = _open_shared(Path(tempfile.gettempdir()) / f"mmx-{self._identity}.lock")
        try:
            if not _lock(fd):
                log.warning("another engine is planning its memory on this %s; waiting for it", self._noun)
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not _lock(fd):
                    if time.monotonic() > deadline:
                        log.warning("it still is after %.0f s; going on without it", PATIENCE_SECONDS)
                        break
                    time.sleep(0.05)
            yield
        finally:
            os.close(fd)

    def peak_memory(self, run: Callable[[], object]) -> int:
        self._api.synchronize(self.device)
        self._api.empty_cache()
        self._api.reset_peak_memory_stats(self.device)
        before = self._api.memory_reserved(self.device)
        run()
        self._api.synchronize(self.device)
        peak = self._api.max_memory_reserved(self.device) - before
        self._api.empty_cache()
        return int(peak)

    @contextmanager
    def faults(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._api.empty_cache()
            raise MemoryError(first_line(error)) from error
        except RuntimeError as error:
            if isinstance(error, DeviceLostError) or not self._is_lost():
                raise
            raise DeviceLostError(f"the {self._noun} has failed: {first_line(error)}") from error

    def _is_lost(self) -> bool:
        """A fault inside a kernel makes every later call fail; a refused launch does not."""
        try:
            self._api.synchronize(self.device)
        except RuntimeError:
            return True
        return False


class Recorder:
    """Records sequences of kernels of one device into one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._api: Any = torch.get_device_module(device)
        self._new_graph = getattr(self._api, GRAPHS[device.type])
        self._pool = self._api.graph_pool_handle()

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Records what ``run`` launches; returns what replays it and the result that each replay fills."""
        self._api.synchronize()
        graph = self._new_graph()
        with self._api.graph(graph, pool=self._pool):
            result = run()
        return graph.replay, result


def _open_shared(path: Path) -> int:
    """Open for locking only. Why not to write: the file may be another user's."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)


def _lock(fd: int) -> bool:
    """Whether the lock is ours; it ends with the file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
