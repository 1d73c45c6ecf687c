"""MiniMax M2.5 and M2.7: dense attention, q and k normed over their whole projection, MoE in every layer."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers import Attention, ForwardBatch, Linear, Moe, RmsNorm
from mmx.layers.linear import Codes, keeps_fp8
from mmx.layers.mlp import Gate
from mmx.models.causal_lm import DecoderLayer


class M2Attention(nn.Module):
    """q | k | v in one projection; the mean square of q (and of k) runs over all heads together."""

    def __init__(self, ranks: Ranks, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.layer = layer
        self.paged = Attention(ranks, sparse=False, norms_span_heads=True)
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        fp8 = keeps_fp8(config, q_width, kv_width)
        self.reads_codes = fp8
        self.qkv = Linear(config.hidden, self.paged.width, dtype, fp8)
        self.q_norm = RmsNorm(q_width, config.norm_eps, config.gemma, dtype)
        self.k_norm = RmsNorm(kv_width, config.norm_eps, config.gemma, dtype)
        self.o = Linear(q_width, config.hidden, dtype, fp8)

    def forward(self, x: torch.Tensor, batch: ForwardBatch, codes: Codes | None = None) -> torch.Tensor:
        """As in M3. ``codes`` of ``x``, if there are any."""
        qkv: torch.Tensor = self.qkv(x, codes)
        cache = batch.caches[self.layer]
        self.paged.prepare(qkv, (self.q_norm, self.k_norm), cache, batch)
        qkv, batch = batch.cut(qkv)
        heads, made = self.paged.dense_codes(qkv, cache, batch, self.reads_codes)
        output: torch.Tensor = self.o(heads, made)
        return output


def m2_layer(ranks: Ranks, layer: int, dtype: torch.dtype) -> DecoderLayer:
    """Layer number ``layer``: every one has a mixture of experts."""
    mlp = Moe(ranks, Gate(ops.Activation.SILU), dtype)
    return DecoderLayer(ranks, M2Attention(ranks, layer, dtype), mlp, dtype)
