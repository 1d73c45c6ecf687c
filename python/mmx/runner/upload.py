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


def fetch(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host, complete once the device gets there."""
    return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu", non_blocking=True)


class Mailbox:
    """int64 words between host and device, for every step: on a GPU, kernels read and write pinned memory. A
    copy engine would leave the GPU idle for several microseconds before and behind it."""

    SLOTS = 4  # a step that is launched, one that runs, one that is read, and one to spare

    def __init__(self, num_words: int, device: torch.device) -> None:
        self._there: torch.Tensor | None = None
        if device.type != "cuda":
            return
        self._host = torch.zeros((2, self.SLOTS, num_words), dtype=torch.int64, pin_memory=True)
        there = torch.as_tensor(_Mapped(self._host), device=device)
        # Why: memory that was pinned in the name of another GPU comes as a copy on this one.
        if there.data_ptr() != self._host.data_ptr():
            return
        self._there = there
        self._read = [torch.Event(device.type) for _ in range(self.SLOTS)]
        self._sent, self._fetched = 0, 0

    def send(self, words: np.ndarray, target: torch.Tensor) -> None:
        """Fill ``target`` in place, ordered with what runs on the device but not waited for."""
        if self._there is None:
            source = torch.from_numpy(words)
            target.copy_(source if target.device.type == "cpu" else source.pin_memory(), non_blocking=True)
            return
        self._sent = slot = (self._sent + 1) % self.SLOTS
        self._read[slot].synchronize()
        self._host[0, slot, : words.size].numpy()[:] = words
        torch.bitwise_or(self._there[0, slot, : words.size], 0, out=target)
        self._read[slot].record()

    def fetch(self, source: torch.Tensor) -> torch.Tensor:
        """As ``fetch``; holds until ``SLOTS`` calls later."""
        if self._there is None:
            return fetch(source)
        self._fetched = slot = (self._fetched + 1) % self.SLOTS
        torch.bitwise_or(source, 0, out=self._there[1, slot, : source.numel()])
        return self._host[1, slot, : source.numel()]


class _Mapped:
    """Pinned memory as a GPU sees it: at the address it has on the host."""

    def __init__(self, host: torch.Tensor) -> None:
        self._host = host
        place = {"data": (host.data_ptr(), False), "shape": tuple(host.shape), "typestr": "<i8"}
        self.__cuda_array_interface__ = place | {"version": 3}


def torch_dtype(dtype: DTypeLike) -> torch.dtype:
    """torch's name of a numpy type."""
    return _DTYPES[np.dtype(dtype)]


_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}
