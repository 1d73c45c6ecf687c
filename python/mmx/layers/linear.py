"""Dense projections and the constructor of all parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mmx import ops

# bf16 rows up to which ``ops.linear`` beats the library's GEMM: it streams the weights once (bench/NOTES.md).
FEW_ROWS = {"cpu": 4, "cuda": 16}


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without memory: the runner gives it a device, ``weights`` its values."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """``x @ weight.T``; weight [out, in].

    In fp32 a row's result does not depend on its batch: that keeps tokens exact under any batching. In bf16
    many rows go to the library's GEMM.
    """

    def __init__(self, in_width: int, out_width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(out_width, in_width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32 or x.shape[0] <= FEW_ROWS.get(x.device.type, 0):
            return ops.linear(x, self.weight)
        return F.linear(x, self.weight)
