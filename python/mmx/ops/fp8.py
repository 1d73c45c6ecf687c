"""Products of e4m3 rows with e4m3 weights, and what makes and reads such rows.

Scales are multipliers: of rows one per row and 128 columns, of weights one per block of 128 x 128. A result
does not depend on the other rows of a call, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmx.ops._lib import call
from mmx.ops.activation import Activation


def empty_codes(shape: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for what ``fp8_quantize`` makes of rows of that ``shape``."""
    scale = torch.empty((shape[0], -(-shape[1] // 128)), dtype=torch.float32, device=device)
    return torch.empty(shape, dtype=torch.float8_e4m3fn, device=device), scale


def fp8_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 codes of ``x``: per row and 128 columns ``a = max(|x|.max(), 1e-10)`` without NaN, codes
    ``e4m3(x * (448 / a))`` to nearest even, scale ``a / 448``.

    Args:
        x: [rows, cols], f32 or bf16; rows may be strided.

    Returns:
        [rows, cols] e4m3; [rows, ceil(cols / 128)] f32.
    """
    out, scale = empty_codes(x.shape, x.device)
    torch.ops.mmx.fp8_quantize(out, scale, x)
    return out, scale


def fp8_linear(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x @ weight.T`` with each block of 128 of k scaled in fp32.

    Args:
        x, x_scale: from ``fp8_quantize``, [m, k].
        weight: [n, k] e4m3.
        weight_scale: [ceil(n / 128), ceil(k / 128)] f32.
        dtype: of the result, f32 or bf16.

    Returns:
        [m, n].
    """
    if out is None:
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    torch.ops.mmx.fp8_linear(out, x, x_scale, weight, weight_scale)
    return out


def fp8_moe_gate_up(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    sorted_rows: torch.Tensor,
    activation: Activation,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grouped GEMM of gate and up with the activation and the quantisation of its fp32 result fused.

    Args:
        x, x_scale: from ``fp8_quantize``, [num_tokens, hidden].
        weight: [num_local_experts, 2 * inter, hidden] e4m3, gate rows first.
        weight_scale: [num_local_experts, ceil(2 * inter / 128), ceil(hidden / 128)] f32.
        expert_offsets, sorted_rows: from ``moe_plan``.

    Returns:
        [num_tokens * topk, inter] e4m3 in plan order (undefined beyond the last offset); its scale
        [num_tokens * topk, ceil(inter / 128)] f32.
    """
    out, scale = empty_codes((sorted_rows.shape[0], weight.shape[1] // 2), x.device)
    tensors = (out, scale, x, x_scale, weight, weight_scale, expert_offsets, sorted_rows)
    call("fp8_moe_gate_up", tensors, int(activation), alpha, limit)
    return out, scale


def fp8_moe_down(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Grouped GEMM of the down projection.

    Args:
        x, x_scale: from ``fp8_moe_gate_up``, [num_rows, inter].
        weight: [num_local_experts, hidden, inter] e4m3.
        weight_scale: [num_local_experts, ceil(hidden / 128), ceil(inter / 128)] f32.
        expert_offsets: from ``moe_plan``.
        dtype: of the result, f32 or bf16.

    Returns:
        [num_rows, hidden] in plan order (undefined beyond the last offset).
    """
    out = torch.empty((x.shape[0], weight.shape[1]), dtype=dtype, device=x.device)
    torch.ops.mmx.fp8_moe_down(out, x, x_scale, weight, weight_scale, expert_offsets)
    return out


def mxfp8_dequant(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x[n, k] * 2 ** (scale[n, k // 32] - 127)`` of the microscaling format; scale 255 is NaN.

    Args:
        x: [rows, cols] e4m3.
        scale: [rows, ceil(cols / 32)] uint8, the codes of e8m0.
        dtype: of the result, f32 or bf16.

    Returns:
        [rows, cols].
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    torch.ops.mmx.mxfp8_dequant(out, x, scale)
    return out
