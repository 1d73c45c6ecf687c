"""Rotary embedding, page stores and attention over pages for a merged, already normed projection."""

from __future__ import annotations

import torch

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers.batch import ForwardBatch, LayerCache


class Attention:
    """The part of self-attention between the norms of q and k and the output projection; no parameters.

    The merged projection is seen as heads of one width, those that are rotated first:
    q | k | v, on block-sparse layers q | k | index_q | index_k | v. The heads are this rank's.
    """

    def __init__(self, ranks: Ranks, sparse: bool) -> None:
        config = ranks.share.config
        self.context = ranks.context
        index = [config.num_index_heads, 1] if sparse else []
        self.parts = [config.num_heads, config.num_kv_heads, *index, config.num_kv_heads]
        self.total_heads = sum(self.parts)
        self.num_rotated = self.total_heads - config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.selection = (config.topk_blocks, config.init_blocks, config.local_blocks)

    @property
    def width(self) -> int:
        """Columns of the merged projection."""
        return self.total_heads * self.head_dim

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views [num_tokens, heads of the part, head_dim] of ``qkv`` [num_tokens, width]."""
        return qkv.view(-1, self.total_heads, self.head_dim).split_with_sizes(self.parts, 1)

    def dense(self, qkv: torch.Tensor, cache: LayerCache, batch: ForwardBatch) -> torch.Tensor:
        """Causal attention to the whole context: [num_tokens, num_heads * head_dim]. Rotates in place."""
        self._rotate(qkv, batch)
        q, k, v = self.split(qkv)
        self._store(cache, batch, k, v)
        return ops.paged_attention(
            q,
            cache.k,
            cache.v,
            batch.block_table,
            batch.cu_seqlens_q,
            batch.seq_lens,
            batch.max_seqlen_q,
            self.scale,
        ).flatten(1)

    def sparse(self, qkv: torch.Tensor, cache: LayerCache, batch: ForwardBatch) -> torch.Tensor:
        """The same restricted to the blocks that the indexer selects per token and KV head."""
        self._rotate(qkv, batch)
        q, k, index_q, index_k, v = self.split(qkv)
        where = (batch.block_table, batch.cu_seqlens_q, batch.seq_lens, batch.max_seqlen_q)
        assert cache.index_k is not None, "a block-sparse layer has index-K pages"
        self._store(cache, batch, k, v, index_k)
        block_ids = ops.select_blocks(index_q, cache.index_k, *where, *self.selection)
        return ops.sparse_attention(q, cache.k, cache.v, block_ids, *where, self.scale).flatten(1)

    def _store(self, cache: LayerCache, batch: ForwardBatch, *parts: torch.Tensor) -> None:
        """k, v and, on block-sparse layers, index_k into the pages, with those of the context group's
        ranks."""
        if self.context.size > 1:
            widths = [part.shape[1] for part in parts]
            gathered = self.context.gather_tokens(torch.cat(parts, 1), batch.context_counts)
            parts = gathered.split_with_sizes(widths, 1)
        ops.kv_store(cache.k, cache.v, parts[0], parts[1], batch.slot_mapping)
        if cache.index_k is not None:
            ops.index_k_store(cache.index_k, parts[2].squeeze(1), batch.slot_mapping)

    def _rotate(self, qkv: torch.Tensor, batch: ForwardBatch) -> None:
        heads = qkv.view(-1, self.total_heads, self.head_dim)[:, : self.num_rotated]
        ops.rope(heads, batch.cos_sin, batch.positions, out=heads)
