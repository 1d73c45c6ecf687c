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


__all__ = ["Backend", "resolve_backend"]
