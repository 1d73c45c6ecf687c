"""Facts about the device that runs a model: the only place that asks which kind it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from mmx.backend.accelerator import Recorder
from mmx.backend.ascend import AscendBackend, npu_module, npu_present
from mmx.backend.cpu import CpuBackend
from mmx.backend.cuda import CudaBackend
from mmx.errors import ConfigError


class Backend(Protocol):
    """One device."""

    name: str
    device: torch.device
    has_graphs: bool
    """Whether a fixed sequence of kernels can be recorded and replayed."""

    has_fp8: bool
    """Whether kernels compute with e4m3 weights; else these are multiplied out when they are loaded."""

    pool_share: float | None
    """Share of the memory left by the weights that the page pool takes by default; None: all that the engine
    may use."""

    def total_memory(self) -> int:
        """Bytes of the device, those in use included."""

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""

    def planning(self) -> AbstractContextManager[None]:
        """Held while memory is planned and taken, so that two engines never count on the same bytes."""

    def peak_memory(self, run: Callable[[], object]) -> int:
        """Bytes that ``run`` needs at most beyond those in use; 0 where that is not worth knowing, without
        running it."""

    def faults(self) -> AbstractContextManager[None]:
        """Turns what the device reports inside into MemoryError, after which work can go on with less, or
        into DeviceLostError, after which it can not. Other errors pass."""


def resolve_backend(device: str) -> Backend:
    """The backend for a ``--device`` value; "auto" is the best device present."""
    if device == "npu" or (device == "auto" and npu_present() and not torch.cuda.is_available()):
        return AscendBackend()
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda needs an NVIDIA GPU and a torch built for CUDA, torch sees none")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return CudaBackend()
    return CpuBackend()


def use_local_device(device: str, local_rank: int) -> torch.device:
    """Make the machine's device number ``local_rank`` the one that ``resolve_backend`` finds. A launcher may
    show each rank its own device only: then that one is taken."""
    backend = resolve_backend(device)
    if backend.name == "cpu":
        return backend.device
    api = npu_module() if backend.name == "npu" else torch.cuda
    visible = api.device_count()
    if local_rank >= visible > 1:
        noun = "an NPU" if backend.name == "npu" else "a GPU"
        raise ConfigError(f"local rank {local_rank} needs {noun} of its own, this machine shows {visible}")
    api.set_device(local_rank if visible > 1 else 0)
    return resolve_backend(device).device


__all__ = ["Backend", "Recorder", "resolve_backend", "use_local_device"]
