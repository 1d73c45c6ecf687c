"""Dense projections and the constructor of all parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mmx import ops
from mmx.model_config import FP8_BLOCK, ModelConfig

# bf16 rows per device type from which torch's GEMM is faster than ``ops.linear`` (bench/NOTES.md).
MANY_ROWS = {"cuda": 33}


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without memory: the runner gives it a device, ``weights`` its values."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def keeps_fp8(config: ModelConfig, *widths: int) -> bool:
    """Whether matrices that are merged from, or cut into, parts of ``widths`` stay e4m3: their scale blocks
    must not be cut. Else they are dequantised when they are loaded."""
    kept = config.fp8_blocks and not config.dequantize
    return kept and all(width % FP8_BLOCK == 0 for width in widths)


def fp8_parameters(*shape: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Codes [.., rows, cols] and their scales, one per block of 128 x 128."""
    blocks = (-(-size // FP8_BLOCK) for size in shape[-2:])
    scale = parameter(*shape[:-2], *blocks, dtype=torch.float32)
    return parameter(*shape, dtype=torch.float8_e4m3fn), scale


class Codes(NamedTuple):
    """Rows in e4m3, as ``ops.fp8_quantize`` gives them: [num_tokens, width], one scale per 128 columns."""

    codes: torch.Tensor
    scale: torch.Tensor


class Linear(nn.Module):
    """``x @ weight.T``; weight [out, in].

    A row's result does not depend on its batch, which keeps tokens exact under any batching; but many rows of
    bf16 on a GPU go to torch's GEMM, unless ``fixed_order``. With ``fp8`` weight and rows are e4m3:
    exact under batching as well.
    """

    fixed_order = False

    def __init__(self, in_width: int, out_width: int, dtype: torch.dtype, fp8: bool = False) -> None:
        super().__init__()
        self.weight_scale: nn.Parameter | None = None
        if fp8:
            self.weight, self.weight_scale = fp8_parameters(out_width, in_width)
        else:
            self.weight = parameter(out_width, in_width, dtype=dtype)

    def forward(
        self, x: torch.Tensor, codes: Codes | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """``codes`` of ``x``, if there are any and the weight is e4m3; ``dtype`` of the result, that of ``x``
        (default) or float32."""
        dtype = dtype or x.dtype
        if self.weight_scale is not None:
            rows = codes or ops.fp8_quantize(x)
            return ops.fp8_linear(*rows, self.weight, self.weight_scale, dtype)
        many = x.shape[0] >= MANY_ROWS.get(x.device.type, 1 << 62)
        if x.dtype == torch.bfloat16 and many and not self.fixed_order:
            if dtype == x.dtype:
                return F.linear(x, self.weight)
            return torch.mm(x, self.weight.T, out_dtype=dtype)
        return ops.linear(x, self.weight, dtype)
