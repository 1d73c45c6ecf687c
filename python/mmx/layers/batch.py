"""What a model's forward pass is given: tokens of a step, where they go, and the pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch


class LayerCache(NamedTuple):
    """One layer's pages. ``k`` and ``v``: [num_blocks, num_kv_heads, block_size, head_dim]; ``index_k``:
    [num_blocks, block_size, index_dim] on block-sparse layers, else None."""

    k: torch.Tensor
    v: torch.Tensor
    index_k: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Tokens of all sequences of a step, one after the other.

    Attributes:
        token_ids, positions: [num_tokens] int64; positions count from the sequence's start.
        slot_mapping: [num_tokens] int64, ``block_id * block_size + offset`` where K and V are stored.
        block_table: [num_seqs, max_blocks_per_seq] int32.
        cu_seqlens_q: [num_seqs + 1] int32, prefix sums of the tokens per sequence.
        seq_lens: [num_seqs] int32, context length including this step's tokens.
        max_seqlen_q: largest number of tokens of a sequence.
        logit_rows: [num_rows] int64, the tokens whose logits are wanted; None for all.
        logit_seqs: [num_rows] int64, the sequences whose last tokens they are; None if they are others.
        token_counts: tokens of this step on each rank of the spread group; unused without one.
        context_counts: tokens on each rank of the context group, whose K and V ``slot_mapping`` then covers
            in that order; unused without one.
        tail: see ``with_tail``.
        cos_sin: [max_positions, rotary_dim] f32, ``ops.rope_table``.
        caches: one per layer.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_table: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    max_seqlen_q: int
    logit_rows: torch.Tensor | None
    cos_sin: torch.Tensor
    caches: list[LayerCache]
    token_counts: tuple[int, ...] = ()
    context_counts: tuple[int, ...] = ()
    logit_seqs: torch.Tensor | None = None
    tail: ForwardBatch | None = None

    def with_tail(self) -> ForwardBatch:
        """For the last layer: K and V of all tokens are stored, the rest is computed for ``logit_rows``."""
        rows, seqs = self.logit_rows, self.logit_seqs
        if rows is None or seqs is None:
            return self
        tail = replace(
            self,
            token_ids=self.token_ids[rows],
            positions=self.positions[rows],
            slot_mapping=self.slot_mapping[rows],
            block_table=self.block_table[seqs],
            cu_seqlens_q=torch.arange(rows.shape[0] + 1, dtype=torch.int32, device=rows.device),
            seq_lens=self.seq_lens[seqs],
            max_seqlen_q=1,
            logit_rows=None,
            logit_seqs=None,
        )
        return replace(self, tail=tail)

    def cut(self, rows: torch.Tensor) -> tuple[torch.Tensor, ForwardBatch]:
        """Those of ``rows`` [num_tokens, ..] that are needed once K and V are stored, as a batch."""
        return (rows, self) if self.tail is None else (rows[self.logit_rows], self.tail)
