"""Token embedding."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.layers.linear import parameter


class Embedding(nn.Module):
    """[num_tokens] ids to [num_tokens, hidden]."""

    def __init__(self, vocab: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(vocab, hidden, dtype=dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ops.embedding(self.weight, ids)
