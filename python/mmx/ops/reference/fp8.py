from __future__ import annotations

from itertools import pairwise

import torch

from mmx.ops.reference.activation import gated_act
from mmx.ops.reference.quant import fp8_block_dequant

_MAX, _LEAST_AMAX = 448.0, 1e-10


def fp8_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = x.shape
    groups = -(-cols // 128)
    wide = x.new_zeros(rows, groups * 128, dtype=torch.float32)
    wide[:, :cols] = x
    wide = wide.view(rows, groups, 128)
    amax = wide.abs().where(~wide.isnan(), 0).amax(-1).clamp(min=_LEAST_AMAX)
    # Why a tensor: torch multiplies by the rounded reciprocal of a number.
    most = torch.full_like(amax, _MAX)
    codes = (wide * (most / amax)[..., None]).to(torch.float8_e4m3fn)
    return codes.view(rows, groups * 128)[:, :cols].contiguous(), amax / most


def fp8_linear(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    return (_rows(x, x_scale, wide) @ fp8_block_dequant(weight, weight_scale, wide).T).to(dtype)


def fp8_moe_gate_up(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    sorted_rows: torch.Tensor,
    activation: int,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    topk = sorted_rows.shape[0] // max(x.shape[0], 1)
    h = torch.zeros(sorted_rows.shape[0], weight.shape[1] // 2, device=x.device)
    for e, (begin, end) in enumerate(pairwise(expert_offsets.tolist())):
        tokens = sorted_rows[begin:end].long() // max(topk, 1)
        gate_up = fp8_linear(x[tokens], x_scale[tokens], weight[e], weight_scale[e], torch.float32)
        h[begin:end] = gated_act(gate_up, activation, alpha, limit)
    return fp8_quantize(h)


def fp8_moe_down(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    out = torch.zeros(x.shape[0], weight.shape[1], dtype=dtype, device=x.device)
    for e, (begin, end) in enumerate(pairwise(expert_offsets.tolist())):
        rows = (x[begin:end], x_scale[begin:end])
        out[begin:end] = fp8_linear(*rows, weight[e], weight_scale[e], dtype)
    return out


def mxfp8_dequant(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    exponent = scale.int() - 127
    factor = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)
    factor = factor.where(exponent != 128, float("nan"))
    per_element = factor.repeat_interleave(32, 1)[:, : x.shape[1]]
    return (x.double() * per_element).float().to(dtype)


def _rows(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values of quantised rows."""
    return x.to(dtype) * scale.to(dtype).repeat_interleave(128, 1)[:, : x.shape[1]]
