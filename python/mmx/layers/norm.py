"""Root mean square norm, alone and fused with the residual addition before it."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.layers.linear import parameter


class RmsNorm(nn.Module):
    """Norm over the last dimension, times ``weight`` or, in Gemma form, ``1 + weight``."""

    def __init__(self, width: int, eps: float, gemma: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(width, dtype=dtype)
        self.eps = eps
        self.gemma = gemma

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps, self.gemma, out=out)

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual += x``, then the norm of the sum, written over ``x``."""
        return ops.add_rms_norm(residual, x, self.weight, self.eps, self.gemma, out=x)
