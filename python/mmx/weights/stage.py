"""Tensors of mapped files to a device: several at a time, through small pinned buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

import torch

NUM_LANES = 8
LANE_BYTES = 32 << 20  # of each of a lane's two buffers

# Where a tensor goes, how it is read (in a lane's thread), and the bytes that this stands for in progress.
Job = tuple[torch.Tensor, Callable[[], torch.Tensor], int]


def copy_all(jobs: Iterable[Job], device: torch.device, *, lane_bytes: int = LANE_BYTES) -> Iterator[int]:
    """Fill all targets; yields the bytes of each one that is complete. The first error of a job is raised,
    and no new one is begun. The host holds ``NUM_LANES`` times two buffers at most, whatever the model is."""
    if device.type == "cpu":
        for target, read, num_bytes in jobs:
            target.copy_(read())
            yield num_bytes
        return
    lanes = threading.local()

    def run(target: torch.Tensor, read: Callable[[], torch.Tensor], num_bytes: int) -> int:
        if not hasattr(lanes, "lane"):
            lanes.lane = Lane(device, lane_bytes)
        lanes.lane.copy(target, read())
        return num_bytes

    todo = iter(jobs)
    with ThreadPoolExecutor(NUM_LANES) as pool:
        running: set[Future[int]] = {pool.submit(run, *job) for job in islice(todo, 2 * NUM_LANES)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            running |= {pool.submit(run, *job) for job in islice(todo, len(done))}


class Lane:
    """A stream with two buffers, of which one is filled while the other is on its way."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        on_gpu = device.type == "cuda"
        self._buffers = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._sent = [torch.cuda.Event() for _ in range(2)] if on_gpu else []

    @torch.inference_mode()
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """``target`` = ``source``, a few rows at a time; complete on return."""
        row_bytes = max(1, source[:1].numel() * source.dtype.itemsize)
        rows = max(1, self._buffers[0].numel() // row_bytes)
        if row_bytes > self._buffers[0].numel():
            pinned = self._buffers[0].is_pinned()
            self._buffers = [torch.empty(row_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        for i, begin in enumerate(range(0, source.shape[0], rows)):
            part = source[begin : begin + rows]
            buffer = self._buffers[i % 2][: part.numel() * part.dtype.itemsize]
            if self._stream is None:
                target[begin : begin + rows].copy_(_fill(buffer, part))
                continue
            if i >= 2:
                self._sent[i % 2].synchronize()
            filled = _fill(buffer, part)
            with torch.cuda.stream(self._stream):
                target[begin : begin + rows].copy_(filled, non_blocking=True)
                self._sent[i % 2].record()
        if self._stream is not None:
            self._stream.synchronize()


def _fill(buffer: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return buffer.view(part.dtype).view(part.shape).copy_(part)
