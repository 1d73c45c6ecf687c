"""The frame both families share: embedding, layers, final norm, output projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmx.distributed import Ranks
from mmx.layers import Embedding, ForwardBatch, Linear, RmsNorm


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream.

    Both give the part of this rank's heads, columns or experts, which is summed over the tensor group.
    """

    def __init__(self, ranks: Ranks, attention: nn.Module, mlp: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.ranks = ranks
        self.attn_norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.attention = attention
        self.mlp_norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor, branch: torch.Tensor | None, batch: ForwardBatch) -> torch.Tensor:
        """Adds ``branch``, what the previous layer returned (None before the first), to the residual stream
        ``hidden`` in place; returns the MLP's output, which is not added yet. Both [num_tokens, hidden], or
        this rank's slice of the tokens with sequence-parallel norms."""
        ranks, num_tokens = self.ranks, batch.positions.shape[0]
        x = self.attn_norm(hidden) if branch is None else self.attn_norm.add(hidden, branch)
        branch = ranks.reduce(self.attention(ranks.whole(x, num_tokens), batch))
        x = ranks.whole(self.mlp_norm.add(hidden, branch), num_tokens)
        return ranks.reduce(self.mlp(x, batch))


class CausalLM(nn.Module):
    """The whole model, or one rank's share of it."""

    def __init__(self, ranks: Ranks, layers: Sequence[DecoderLayer], dtype: torch.dtype) -> None:
        super().__init__()
        config, vocab = ranks.share.config, ranks.share.vocab
        self.ranks = ranks
        self.embed = Embedding(vocab, config.hidden, dtype)
        self.layers = nn.ModuleList(layers)
        self.norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.lm_head = Linear(config.hidden, vocab[1] - vocab[0], dtype)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits of ``batch.logit_rows`` for this rank's part of the vocabulary: [num_rows, vocab] f32."""
        hidden = self.ranks.reduce(self.embed(batch.token_ids))
        layers = iter(self.layers)
        branch = next(layers)(hidden, None, batch)
        for layer in layers:
            branch = layer(hidden, branch, batch)
        hidden, branch = (self.ranks.whole(x, batch.positions.shape[0]) for x in (hidden, branch))
        if batch.logit_rows is not None:
            hidden, branch = hidden[batch.logit_rows], branch[batch.logit_rows]
        logits: torch.Tensor = self.lm_head(self.norm.add(hidden, branch))
        return logits.float()
