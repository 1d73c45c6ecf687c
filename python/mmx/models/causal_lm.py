"""The frame both families share: embedding, layers, final norm, output projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmx.distributed import Ranks
from mmx.layers import Embedding, ForwardBatch, Linear, RmsNorm
from mmx.layers.linear import Codes
from mmx.layers.norm import ExpertRows

Branch = torch.Tensor | ExpertRows


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream.

    Both give the part of this rank's heads, columns or experts, which the next norm sums over the ranks.
    """

    def __init__(self, ranks: Ranks, attention: nn.Module, mlp: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.ranks = ranks
        self.attn_norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.attention = attention
        self.mlp_norm = RmsNorm(config.hidden, config.norm_eps, config.gemma, dtype)
        self.mlp = mlp

    def forward(
        self, hidden: torch.Tensor, branch: Branch | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, Branch]:
        """Adds ``branch``, what the previous layer returned (None before the first), to the residual stream
        ``hidden`` in place; returns the stream and this rank's part of the MLP's output, which is not added
        yet, nor summed over experts. Both [num_tokens, hidden], fewer tokens where ``batch`` has a tail;
        ``hidden`` is this rank's slice of the tokens with sequence-parallel norms."""
        branch = self._run(self.attention, self.attn_norm, hidden, branch, batch)
        hidden, batch = batch.cut(hidden)
        return hidden, self._run(self.mlp, self.mlp_norm, hidden, branch, batch)

    def _run(
        self,
        module: nn.Module,
        norm: RmsNorm,
        hidden: torch.Tensor,
        branch: Branch | None,
        batch: ForwardBatch,
    ) -> Branch:
        """``module`` of the norm of the sum, with codes where it reads them and the norm is of all tokens."""
        codes: list[Codes] = []
        if branch is None:
            x = norm(hidden)
        elif getattr(module, "reads_codes", False) and not self.ranks.layout.sequence_parallel:
            x, *codes = norm.add_quantize(hidden, branch, self.ranks)
        else:
            x = norm.add(hidden, branch, self.ranks)
        part: Branch = module(self.ranks.whole(x, batch.positions.shape[0]), batch, *codes)
        return part


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
        hidden, branch = self.embed(batch.token_ids), None
        if self.ranks.tensor.size > 1:  # the first norm sums
            hidden, branch = self.ranks.zeros(hidden), hidden
        for layer in self.layers[:-1]:
            hidden, branch = layer(hidden, branch, batch)
        last = batch.with_tail() if self.ranks.owns_tokens else batch
        hidden, branch = self.layers[-1](hidden, branch, last)
        rows, spread = batch.logit_rows, self.ranks.layout.sequence_parallel
        if rows is not None and not spread and last.tail is None:
            branch = branch.sum() if isinstance(branch, ExpertRows) else branch
            hidden, branch = hidden[rows], branch[rows]
        x = self.ranks.whole(self.norm.add(hidden, branch, self.ranks), batch.positions.shape[0])
        if rows is not None and spread:
            x = x[rows]
        logits: torch.Tensor = self.lm_head(x, dtype=torch.float32)
        return logits
