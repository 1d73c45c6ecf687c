"""Dense projections and the constructor of all parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mmx import ops

# bf16 rows per device type from which the library's GEMM is faster than ``ops.linear`` (bench/NOTES.md).
MANY_ROWS = {"cuda": 17}


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without memory: the runner gives it a device, ``weights`` its values."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


class Linear(nn.Module):
    """``x @ weight.T``; weight [out, in].

    A row's result does not depend on its batch, which keeps tokens exact under any batching; but many rows of
    bf16 on a GPU go to the library's GEMM.
    """

    def __init__(self, in_width: int, out_width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(out_width, in_width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.shape[0] >= MANY_ROWS.get(x.device.type, 1 << 62):
            return F.linear(x, self.weight)
        return ops.linear(x, self.weight)
