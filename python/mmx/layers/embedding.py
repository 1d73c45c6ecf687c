"""Token embedding."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.layers.linear import parameter


class Embedding(nn.Module):
    """[num_tokens] ids to [num_tokens, hidden]; zeros for ids outside ``vocab`` (begin, end)."""

    def __init__(self, vocab: tuple[int, int], hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.first_id = vocab[0]
        self.weight = parameter(vocab[1] - vocab[0], hidden, dtype=dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ops.embedding(self.weight, ids, self.first_id)
