"""The frame both families share: embedding, layers, final norm, output projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmx.layers import Embedding, ForwardBatch, Linear, RmsNorm
from mmx.model_config import ModelConfig


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, attention: nn.Module, mlp: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.attn_norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.attention = attention
        self.mlp_norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor, branch: torch.Tensor | None, batch: ForwardBatch) -> torch.Tensor:
        """Adds ``branch``, what the previous layer returned (None before the first), to the residual stream
        ``hidden`` in place; returns the MLP's output, which is not added yet. Both [num_tokens, hidden]."""
        x = self.attn_norm(hidden) if branch is None else self.attn_norm.add(hidden, branch)
        output: torch.Tensor = self.mlp(self.mlp_norm.add(hidden, self.attention(x, batch)))
        return output


class CausalLM(nn.Module):
    """The whole model."""

    def __init__(self, config: ModelConfig, layers: Sequence[DecoderLayer], dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = Embedding(config.vocab_size, config.hidden, dtype)
        self.layers = nn.ModuleList(layers)
        self.norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.lm_head = Linear(config.hidden, config.vocab_size, dtype)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits of ``batch.logit_rows``: [num_rows, vocab] f32."""
        hidden = self.embed(batch.token_ids)
        layers = iter(self.layers)
        branch = next(layers)(hidden, None, batch)
        for layer in layers:
            branch = layer(hidden, branch, batch)
        if batch.logit_rows is not None:
            hidden, branch = hidden[batch.logit_rows], branch[batch.logit_rows]
        logits: torch.Tensor = self.lm_head(self.norm.add(hidden, branch))
        return logits.float()
