"""Memory of the ranks of one host, mapped into each other's processes: small sums without NCCL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from mmx.errors import first_line

log = logging.getLogger("mmx.engine")

# Most rows that a rank sends in one sum; of m rows over n ranks it sends 2 (n - 1) / n * m. With more NCCL's
# ring comes close, measured with two and four ranks (bench/NOTES.md, Several GPUs).
MAX_SENT_ROWS = 256
# The kernel's rows: a run of 8 elements for each of at most 1,024 threads.
RUN, MAX_WIDTH, MAX_RANKS = 8, 8192, 8


class Peers(NamedTuple):
    """The last arguments of the ops that exchange rows (``ops.all_reduce_add_rms_norm``)."""

    inboxes: list[torch.Tensor]  # of each rank, [2, num_ranks, max_tokens, row_words] int64
    epochs: torch.Tensor  # [max_tokens] int32
    rank: int
    timeout: float  # seconds

    @property
    def max_tokens(self) -> int:
        return self.epochs.shape[0]


def map_peers(
    ranks: Sequence[int], rank: int, width: int, device: torch.device, store: TCPStore, timeout: float
) -> Peers | None:
    """Inboxes for rows of up to ``width`` elements of a group's ranks, each one with a GPU of its own. None,
    on all ranks alike, where there is one rank only, where they run on several hosts, and, with a line in the
    log, where the GPUs can not map each other's memory."""
    size, place = len(ranks), tuple(ranks).index(rank)
    if not 1 < size <= MAX_RANKS or width % RUN or width > MAX_WIDTH:
        return None

    def tell(what: str, words: bytes, to: int | str = "all") -> None:
        store.set(f"peers/{ranks[0]}/{what}/{place}/{to}", words)  # type: ignore[arg-type]

    def hear(what: str, of: int, to: int | str = "all") -> bytes:
        return bytes(store.get(f"peers/{ranks[0]}/{what}/{of}/{to}"))

    others = [i for i in range(size) if i != place]
    host = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    tell("host", host)
    if any(hear("host", i) != host for i in others):
        return None
    shape = (2, size, MAX_SENT_ROWS * size // (2 * (size - 1)), width)
    inboxes = [torch.zeros(shape, dtype=torch.int64, device=device)] * size
    epochs = torch.zeros(shape[2], dtype=torch.int32, device=device)
    torch.cuda.synchronize(device)  # the zeros are there before another rank writes
    failed, handles = "", {}
    try:
        # Why once per reader: torch counts who has opened a handle.
        handles = {i: inboxes[place].untyped_storage()._share_cuda_() for i in others}
    except RuntimeError as error:
        failed = first_line(error)
    for i in others:
        tell("handle", msgspec.msgpack.encode(handles.get(i)), i)
    for i in others:
        handle = msgspec.msgpack.decode(hear("handle", i, place))
        if handle is None:
            continue
        try:
            # Why this rank's device: memory is mapped for the one that uses it, not for its owner's.
            memory = torch.UntypedStorage._new_shared_cuda(device.index, *handle[1:])
        except RuntimeError as error:
            failed = first_line(error)
        else:
            inboxes[i] = torch.empty(0, dtype=torch.int64, device=device).set_(memory).view(shape)
    tell("mapped", failed.encode())
    if reason := failed or next((words.decode() for i in others if (words := hear("mapped", i))), ""):
        log.warning("small sums go through NCCL: GPUs can not map each other's memory (%s)", reason)
        return None
    return Peers(inboxes, epochs, place, timeout)
