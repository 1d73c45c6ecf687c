"""A group of ranks and its collectives. Every call is counted: tests hold the numbers, the watchdog names
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

# Why: newer versions of torch have other names for the two and warn about these.
_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class CallLog:
    """What this rank has asked of its peers.

    ``calls`` counts by (collective, group), ``num_bytes`` the bytes this rank put in. ``current`` is the call
    it waits in, None between calls; on a GPU calls return before they are done.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.num_bytes: Counter[tuple[str, str]] = Counter()
        self.num_calls = 0
        self.current: str | None = None

    @contextmanager
    def call(self, collective: str, group: str, x: torch.Tensor) -> Iterator[None]:
        self.calls[collective, group] += 1
        self.num_bytes[collective, group] += x.numel() * x.element_size()
        self.num_calls += 1
        self.current = f"{collective} of the {group} group"
        yield
        # Why not in a finally: after a failure the name of the call is what the report needs.
        self.current = None


class Group:
    """Ranks in a fixed order, this process among them; a group of one does nothing and counts nothing.

    Tensors are contiguous, results are new tensors unless said otherwise. Sums are taken in the tensor's
    dtype, and every rank of the group gets the same bits.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        rank: int,
        log: CallLog,
        handle: dist.ProcessGroup | None = None,
    ) -> None:
        self.name = name
        self.size = len(ranks)
        self.rank = tuple(ranks).index(rank)
        self._log = log
        self._handle = handle

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1 and x.numel():
            with self._log.call("all_reduce", self.name, x):
                dist.all_reduce(x, group=self._handle)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' tensors of one shape, one after the other: [size * n, ...]."""
        if self.size == 1:
            return x
        if not x.numel():
            return x.repeat(self.size, *[1] * (x.ndim - 1))
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        with self._log.call("all_gather", self.name, x):
            _gather(out, x.contiguous(), group=self._handle)
        return out

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over the ranks: [n / size, ...] of [n, ...]."""
        if self.size == 1 or not x.numel():
            return x
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        with self._log.call("reduce_scatter", self.name, x):
            _scatter(out, x.contiguous(), group=self._handle)
        return out

    def all_to_all(self, x: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
        """Rows ``x`` in order of their receiver, ``sent[i]`` for rank i; the rows from all ranks in order of
        their sender, ``received[i]`` from rank i."""
        if self.size == 1:
            return x
        out = x.new_empty((sum(received), *x.shape[1:]))
        with self._log.call("all_to_all", self.name, x):
            dist.all_to_all_single(out, x.contiguous(), list(received), list(sent), group=self._handle)
        return out

    # ---- tokens, of which each rank has its own number ---------------------------------------------------

    def gather_tokens(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Rows of all ranks, one after the other; rank i has ``counts[i]``: [sum(counts), ...]."""
        if self.size == 1:
            return x
        most = max(counts)
        gathered = self.all_gather(_padded(x, most))
        if min(counts) == most:
            return gathered
        return torch.cat([gathered[i * most : i * most + count] for i, count in enumerate(counts)])

    def scatter_tokens(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The sum over the ranks of [sum(counts), ...], of which each rank gets its own rows."""
        if self.size == 1:
            return x
        most = max(counts)
        if min(counts) < most:
            x = torch.cat([_padded(part, most) for part in x.split(list(counts))])
        return self.reduce_scatter(x)[: counts[self.rank]]

    # ---- numbers -----------------------------------------------------------------------------------------

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of the ranks' numbers."""
        if self.size == 1:
            return value
        return int(self.all_gather(torch.tensor([value], device=device)).min())


def _padded(x: torch.Tensor, num_rows: int) -> torch.Tensor:
    missing = num_rows - x.shape[0]
    return x if missing == 0 else torch.cat([x, x.new_zeros((missing, *x.shape[1:]))])
