"""Dense projections and the constructor of all parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without memory: the runner gives it a device, ``weights`` its values."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """``x @ weight.T``; weight [out, in]."""

    def __init__(self, in_width: int, out_width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(out_width, in_width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)
