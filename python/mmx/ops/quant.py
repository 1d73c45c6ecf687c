"""Quantised weights."""

from __future__ import annotations

import torch


def fp8_block_dequant(
    x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``x[n, k] * scale[n // 128, k // 128]``, product in fp32.

    Args:
        x: [rows, cols] e4m3.
        scale: [ceil(rows / 128), ceil(cols / 128)] f32, a multiplier.
        dtype: of the result, f32 or bf16.

    Returns:
        [rows, cols].
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device) if out is None else out
    torch.ops.mmx.fp8_block_dequant(out, x, scale)
    return out
