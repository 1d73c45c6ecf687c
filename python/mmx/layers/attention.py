"""From a merged projection to attention over pages: norms of q and k, rotary embedding, page stores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers.batch import ForwardBatch, LayerCache
from mmx.layers.context import spread_attention
from mmx.layers.linear import Codes
from mmx.layers.norm import RmsNorm
from mmx.ops.fp8 import empty_codes


class Attention:
    """The part of self-attention between the projection of q, k and v and that of the output; no parameters.

    The merged projection is seen as heads of one width, those that are rotated first:
    q | k | v, on block-sparse layers q | k | index_q | index_k | v. The heads are this rank's.
    ``fixed_split``: a row's result does not depend on its batch, on a GPU either.
    """

    fixed_split = False

    def __init__(self, ranks: Ranks, sparse: bool, norms_span_heads: bool = False) -> None:
        config = ranks.share.config
        self.ranks = ranks
        self.norms_span_ranks = norms_span_heads and ranks.tensor.size > 1
        self.context = ranks.context
        self.decode = ranks.decode
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

    def prepare(
        self, qkv: torch.Tensor, norms: Sequence[RmsNorm], cache: LayerCache, batch: ForwardBatch
    ) -> None:
        """Norms the leading parts of ``qkv`` in place, each by one of ``norms`` (over a head, or over the
        heads of all ranks together), rotates them, and stores k, v and index_k."""
        mean_squares: torch.Tensor | None = None
        q_norm, k_norm, *index = norms
        heads = qkv.view(-1, self.total_heads, self.head_dim)
        if self.norms_span_ranks:
            mean_squares = self.ranks.mean_squares(heads, *self.parts[:2])
        if self.context.size == 1:
            index_q_weight, index_k_weight = [norm.weight for norm in index] if index else (None, None)
            weights = (q_norm.weight, k_norm.weight, index_q_weight, index_k_weight)
            where = (batch.cos_sin, batch.positions, batch.slot_mapping)
            form = (self.parts[0], q_norm.eps, q_norm.gemma)
            arguments = (heads, *cache, *weights, *where, *form)
            ops.norm_rope_store(*arguments, mean_squares=mean_squares)
            return
        parts = self.split(qkv)
        for i, (part, norm) in enumerate(zip(parts, norms, strict=False)):
            if mean_squares is not None:
                norm.by(part.flatten(1), mean_squares[:, i])
                continue
            rows = part if norm.weight.numel() == self.head_dim else part.flatten(1)
            norm(rows, out=rows)
        rotated = heads[:, : self.num_rotated]
        ops.rope(rotated, batch.cos_sin, batch.positions, out=rotated)
        self._store(cache, batch, parts[1], parts[-1], *parts[3:-1])

    def dense(self, qkv: torch.Tensor, cache: LayerCache, batch: ForwardBatch) -> torch.Tensor:
        """Causal attention of a prepared ``qkv`` to the whole context: [num_tokens, num_heads * head_dim]."""
        return self.dense_codes(qkv, cache, batch, wanted=False)[0]

    def dense_codes(
        self, qkv: torch.Tensor, cache: LayerCache, batch: ForwardBatch, wanted: bool
    ) -> tuple[torch.Tensor, Codes | None]:
        """The same and, if ``wanted`` and no other rank has a part of it, its codes."""
        q = self.split(qkv)[0]
        if self.decode.size > 1:
            return self._spread(q, cache, batch, None), None
        heads = q.new_empty(q.shape)
        made = Codes(*empty_codes(heads.flatten(1).shape, q.device)) if wanted else None
        codes, codes_scale = made or (None, None)
        where = (batch.block_table, batch.cu_seqlens_q, batch.seq_lens, batch.max_seqlen_q)
        ops.paged_attention(
            q, cache.k, cache.v, *where, self.scale,
            fixed_split=self.fixed_split, codes=codes, codes_scale=codes_scale, out=heads,
        )  # fmt: skip
        return heads.flatten(1), made

    def sparse(self, qkv: torch.Tensor, cache: LayerCache, batch: ForwardBatch) -> torch.Tensor:
        """The same restricted to the blocks that the indexer selects per token and KV head."""
        q, _, index_q, *_ = self.split(qkv)
        fixed = self.fixed_split
        if self.decode.size > 1:
            return self._spread(q, cache, batch, index_q)
        where = (batch.block_table, batch.cu_seqlens_q, batch.seq_lens, batch.max_seqlen_q)
        assert cache.index_k is not None, "a block-sparse layer has index-K pages"
        block_ids = ops.select_blocks(index_q, cache.index_k, *where, *self.selection, fixed_split=fixed)
        heads = ops.sparse_attention(q, cache.k, cache.v, block_ids, *where, self.scale, fixed_split=fixed)
        return heads.flatten(1)

    def _spread(
        self, q: torch.Tensor, cache: LayerCache, batch: ForwardBatch, index_q: torch.Tensor | None
    ) -> torch.Tensor:
        return spread_attention(self.decode, q, cache, batch, self.scale, index_q, self.selection).flatten(1)

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
