"""Decode steps as CUDA graphs: one per padded batch size, at fixed addresses, with lengths on the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mmx.batch import ScheduledBatch
from mmx.layers import ForwardBatch, LayerCache


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Padded batch sizes up to ``max_num_seqs``, largest first: 1, 2, 4, steps of 8 to 64 and of 32 beyond,
    so that little of a large batch is padding and few graphs are kept."""
    sizes = {1, 2, 4, *range(8, 65, 8), *range(96, max_num_seqs + 32, 32)}
    return sorted({min(size, max_num_seqs) for size in sizes}, reverse=True)


class DecodeGraphs:
    """Captured forward passes for batches in which every sequence computes and samples one token.

    A padding row is a sequence of length 1 in page 0 that stores nothing: its logits are dropped.
    """

    def __init__(
        self,
        forward: Callable[[ForwardBatch], torch.Tensor],
        *,
        block_size: int,
        max_blocks: int,
        max_num_seqs: int,
        cos_sin: torch.Tensor,
        caches: list[LayerCache],
    ) -> None:
        device = cos_sin.device
        self._forward = forward
        self._block_size = block_size
        self._sizes = graph_sizes(max_num_seqs)
        # Rows: token ids, positions, slots, sequence lengths.
        self._tokens = torch.zeros((4, max_num_seqs), dtype=torch.int64, device=device)
        self._tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int32, device=device)
        self._cu_seqlens_q = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._host_tokens = torch.zeros(self._tokens.shape, dtype=torch.int64).pin_memory()
        self._host_tables = torch.zeros(self._tables.shape, dtype=torch.int32).pin_memory()
        self._seq_lens = torch.ones(max_num_seqs, dtype=torch.int32, device=device)
        self._cos_sin, self._caches = cos_sin, caches
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def capture(self, progress: Callable[[float], None]) -> None:
        """Record all sizes, the largest first so that the others fit into its memory."""
        pool = torch.cuda.graph_pool_handle()
        self._fill_padding(0, self._sizes[0])
        for done, size in enumerate(self._sizes):
            progress(done / len(self._sizes))
            inputs = self._inputs(size)
            # Why: kernels and libraries set themselves up on first use, which a capture does not allow.
            self._forward(inputs)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._forward(inputs)
            self._graphs[size] = (graph, logits)
        progress(1.0)

    def run(self, batch: ScheduledBatch) -> torch.Tensor | None:
        """Logits [num_seqs, vocab] f32, valid until the next step; None where a prompt chunk takes part."""
        seqs = batch.seqs
        if len(seqs) > self._sizes[0] or any(len(seq.token_ids) != 1 or not seq.samples for seq in seqs):
            return None
        size = next(size for size in reversed(self._sizes) if size >= len(seqs))
        tokens, tables = self._host_tokens.numpy(), self._host_tables.numpy()
        columns = max(len(seq.block_ids) for seq in seqs)
        for row, seq in enumerate(seqs):
            slot = self._slot(seq.block_ids, seq.start)
            tokens[:, row] = (seq.token_ids[0], seq.start, slot, seq.start + 1)
            tables[row, : len(seq.block_ids)] = seq.block_ids
        self._fill_padding(len(seqs), size, columns)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(seqs)]

    def _slot(self, block_ids: list[int], position: int) -> int:
        return block_ids[position // self._block_size] * self._block_size + position % self._block_size

    def _fill_padding(self, used: int, size: int, columns: int = 1) -> None:
        """Padding rows on the host, then everything to the device."""
        self._host_tokens.numpy()[:, used:size] = np.array([[0], [0], [-1], [1]])
        self._host_tables.numpy()[used:size, 0] = 0
        self._tokens[:, :size].copy_(self._host_tokens[:, :size], non_blocking=True)
        self._tables[:size, :columns].copy_(self._host_tables[:size, :columns], non_blocking=True)
        self._seq_lens[:size].copy_(self._tokens[3, :size])

    def _inputs(self, size: int) -> ForwardBatch:
        token_ids, positions, slots, _ = self._tokens[:, :size]
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            block_table=self._tables[:size],
            cu_seqlens_q=self._cu_seqlens_q[: size + 1],
            seq_lens=self._seq_lens[:size],
            max_seqlen_q=1,
            logit_rows=None,
            cos_sin=self._cos_sin,
            caches=self._caches,
        )
