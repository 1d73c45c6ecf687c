"""MiniMax M3 text: Gemma norms, q and k normed per head, block-sparse attention chosen by an indexer, MoE
with a shared expert; the first layers are dense in both respects."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers import Attention, ForwardBatch, GatedMlp, Linear, Moe, RmsNorm
from mmx.layers.mlp import Gate
from mmx.models.causal_lm import DecoderLayer


class M3Attention(nn.Module):
    """One projection for q | k | v or, with an indexer, q | k | index_q | index_k | v."""

    def __init__(self, ranks: Ranks, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.layer = layer
        self.sparse = config.sparse_layers[layer]
        self.paged = Attention(ranks, self.sparse)
        self.qkv = Linear(config.hidden, self.paged.width, dtype)
        norm = (config.head_dim, config.norm_eps, config.gemma, dtype)
        self.q_norm = RmsNorm(*norm)
        self.k_norm = RmsNorm(*norm)
        if self.sparse:
            self.index_q_norm = RmsNorm(*norm)
            self.index_k_norm = RmsNorm(*norm)
        self.o = Linear(config.num_heads * config.head_dim, config.hidden, dtype)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[num_tokens, hidden], this rank's heads' part; fewer tokens where ``batch`` has a tail."""
        qkv = self.qkv(x)
        norms, attend = [self.q_norm, self.k_norm], self.paged.dense
        if self.sparse:
            norms += [self.index_q_norm, self.index_k_norm]
            attend = self.paged.sparse
        cache = batch.caches[self.layer]
        self.paged.prepare(qkv, norms, cache, batch)
        qkv, batch = batch.cut(qkv)
        output: torch.Tensor = self.o(attend(qkv, cache, batch))
        return output


def m3_layer(ranks: Ranks, layer: int, dtype: torch.dtype) -> DecoderLayer:
    """Layer number ``layer``, with a mixture of experts or a dense MLP."""
    config = ranks.share.config
    gate = Gate(ops.Activation.SWIGLU_OAI, config.swiglu_alpha, config.swiglu_limit)
    mlp: nn.Module
    if config.moe_layers[layer]:
        mlp = Moe(ranks, gate, dtype)
    else:
        mlp = GatedMlp(config.hidden, config.dense_inter, gate, dtype)
    return DecoderLayer(ranks, M3Attention(ranks, layer, dtype), mlp, dtype)
