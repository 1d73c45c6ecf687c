"""Batches over paged caches: prefill chunks and decodes mixed, pages shuffled, everything unused poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ops.compare import POISON

ABSURD = torch.iinfo(torch.int32).max // 2


@dataclass
class PagedBatch:
    q_lens: list[int]
    seq_lens: list[int]
    block_size: int
    block_table: torch.Tensor  # [num_seqs, max_blocks_per_seq] int32, ABSURD where unused
    num_blocks: int  # pages of the pool; the first and the last are in use if any is

    @property
    def num_tokens(self) -> int:
        return sum(self.q_lens)

    def arguments(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """block_table, cu_seqlens_q, seq_lens, max_seqlen_q."""
        bounds = torch.tensor([0, *self.q_lens]).cumsum(0).int()
        lens = torch.tensor(self.seq_lens, dtype=torch.int32)
        return self.block_table.to(device), bounds.to(device), lens.to(device), max(self.q_lens, default=0)

    def rows(self, seq: int) -> slice:
        begin = sum(self.q_lens[:seq])
        return slice(begin, begin + self.q_lens[seq])

    def take(self, seq: int, q_len: int, seq_len: int) -> PagedBatch:
        """One sequence on its own, with its last ``q_len`` tokens of a context of ``seq_len`` as queries."""
        return PagedBatch(
            [q_len], [seq_len], self.block_size, self.block_table[seq : seq + 1], self.num_blocks
        )

    def poison_unused(self, cache: torch.Tensor, slot_dim: int) -> torch.Tensor:
        """``cache`` [num_blocks, ...] with NaN in each slot that no sequence holds."""
        used = torch.zeros(self.num_blocks, self.block_size, dtype=torch.bool)
        for table, seq_len in zip(self.block_table, self.seq_lens, strict=True):
            for block in range(-(-seq_len // self.block_size)):
                used[table[block], : seq_len - block * self.block_size] = True
        shape = [self.num_blocks] + [1] * (cache.dim() - 1)
        shape[slot_dim] = self.block_size
        return cache.masked_fill(~used.view(shape), POISON)


def make_batch(lens: list[tuple[int, int]], block_size: int, rng: torch.Generator) -> PagedBatch:
    """Batch of sequences with the given (q_len, seq_len); a few pages of the pool stay unused."""
    counts = [-(-seq_len // block_size) for _, seq_len in lens]
    num_used = sum(counts)
    num_blocks = num_used + 3
    inner = 1 + torch.randperm(num_blocks - 2, generator=rng)[: max(0, num_used - 2)]
    pages = torch.cat([torch.tensor([num_blocks - 1, 0])[:num_used], inner]).int()
    pages = pages[torch.randperm(num_used, generator=rng)]
    table = torch.full((len(lens), max(counts, default=0) + 2), ABSURD, dtype=torch.int32)
    for row, used in zip(table, pages.split(counts), strict=True):
        row[: used.numel()] = used
    return PagedBatch([q for q, _ in lens], [s for _, s in lens], block_size, table, num_blocks)


def draw_lens(num_seqs: int, q_len: int, seq_len: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """The longest sequence the dimensions allow first, then decodes, whole prefills and chunks in turn."""
    lens = [(q_len, seq_len)] if num_seqs else []
    while len(lens) < num_seqs:
        length = int(torch.randint(1, seq_len + 1, (), generator=rng))
        queries = int(torch.randint(1, min(q_len, length) + 1, (), generator=rng))
        lens.append([(1, length), (min(q_len, length),) * 2, (queries, length), (0, length)][len(lens) % 4])
    return lens


def draw_batch(dims: Mapping[str, Any], rng: torch.Generator) -> PagedBatch:
    """The batch of a case with these dimensions."""
    lens = draw_lens(dims["num_seqs"], dims["q_len"], dims["seq_len"], rng)
    return make_batch(lens, dims["block_size"], rng)
