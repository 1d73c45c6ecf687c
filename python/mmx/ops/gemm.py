"""Dense projections that give a token the same result in every batch."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """``x @ weight.T`` with fp32 accumulation, independent of the number of rows in the call.

    Fast where it streams weights (CUDA, bf16, up to 16 rows); torch's GEMM is faster on many rows.

    Args:
        x: [m, k], f32 or bf16; rows may be strided.
        weight: [n, k], same dtype, contiguous.
        dtype: of the result, that of ``x`` (default) or float32.

    Returns:
        [m, n].
    """
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype or x.dtype, device=x.device)
    torch.ops.mmx.linear(out, x, weight)
    return out
