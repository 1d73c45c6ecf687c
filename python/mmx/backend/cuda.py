"""One NVIDIA GPU."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmx.errors import DeviceLostError

PATIENCE_SECONDS = 120.0

log = logging.getLogger("mmx.engine")


class CudaBackend:
    """The current CUDA device; dense products in full fp32 where the model is fp32."""

    name = "cuda"
    has_graphs = True
    has_fp8 = True
    pool_share: float | None = None

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        torch.backends.cuda.matmul.allow_tf32 = False

    def total_memory(self) -> int:
        return torch.cuda.mem_get_info(self.device)[1]

    def free_memory(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    @contextmanager
    def planning(self) -> Iterator[None]:
        """A lock per GPU among the processes of this machine."""
        uuid = torch.cuda.get_device_properties(self.device).uuid
        fd = _open_shared(Path(tempfile.gettempdir()) / f"mmx-{uuid}.lock")
        try:
            if not _lock(fd):
                log.warning("another engine is planning its memory on this GPU; waiting for it")
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
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_reserved(self.device)
        run()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_reserved(self.device) - before
        torch.cuda.empty_cache()
        return peak

    @contextmanager
    def faults(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(_first_line(error)) from error
        except RuntimeError as error:
            if isinstance(error, DeviceLostError) or not self._is_lost():
                raise
            raise DeviceLostError(f"the GPU has failed: {_first_line(error)}") from error

    def _is_lost(self) -> bool:
        """A fault inside a kernel makes every later call fail; a refused launch does not."""
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


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
