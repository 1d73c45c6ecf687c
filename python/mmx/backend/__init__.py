"""Facts about the device that runs a model: the only place that asks which kind it is."""

from __future__ import annotations

from typing import Protocol

import torch

from mmx.backend.cpu import CpuBackend
from mmx.backend.cuda import CudaBackend
from mmx.errors import ConfigError


class Backend(Protocol):
    """One device."""

    name: str
    device: torch.device
    has_graphs: bool
    """Whether a fixed sequence of kernels can be recorded and replayed."""

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""

    def pool_bytes(self) -> int:
        """Default size of the page pool, once the weights are in place."""

    def pool_rule(self) -> str:
        """How ``pool_bytes`` comes about, for messages."""


def resolve_backend(device: str) -> Backend:
    """The backend for a ``--device`` value; "auto" is the best device present."""
    if device == "npu":
        raise ConfigError("device npu needs torch_npu and the Ascend op library, which are not installed")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda needs an NVIDIA GPU and a torch built for CUDA, torch sees none")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return CudaBackend()
    return CpuBackend()


def use_local_device(device: str, local_rank: int) -> torch.device:
    """Make the machine's device number ``local_rank`` the one that ``resolve_backend`` finds. A launcher may
    show each rank its own device only: then that one is taken."""
    backend = resolve_backend(device)
    if backend.name != "cuda":
        return backend.device
    visible = torch.cuda.device_count()
    if local_rank >= visible > 1:
        raise ConfigError(f"local rank {local_rank} needs a GPU of its own, this machine shows {visible}")
    torch.cuda.set_device(local_rank if visible > 1 else 0)
    return resolve_backend(device).device


__all__ = ["Backend", "resolve_backend", "use_local_device"]
