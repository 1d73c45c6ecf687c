"""Host arrays to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike

_ALIGN = 16


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on ``device``, of the same types and shapes, in one copy from pinned memory that
    is ordered with what runs there but not waited for. On the CPU they are views of the arrays."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    places, total = [], 0
    for array in arrays:
        places.append(total)
        total += -(-array.nbytes // _ALIGN) * _ALIGN
    # Why no buffer of our own: torch reuses pinned memory only after the copies out of it are done.
    host = torch.empty(total, dtype=torch.uint8, pin_memory=True)
    raw = host.numpy()
    for place, array in zip(places, arrays, strict=True):
        raw[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[place : place + array.nbytes].view(torch_dtype(array.dtype)).view(array.shape)
        for place, array in zip(places, arrays, strict=True)
    ]


def upload_into(target: torch.Tensor, array: np.ndarray) -> None:
    """Fill ``target`` in place; as ``upload`` else."""
    source = torch.from_numpy(array)
    if target.device.type != "cpu":
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)


def torch_dtype(dtype: DTypeLike) -> torch.dtype:
    """torch's name of a numpy type."""
    return _DTYPES[np.dtype(dtype)]


_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}
