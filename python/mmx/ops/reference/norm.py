from __future__ import annotations

import torch

from mmx.ops.reference.fp8 import fp8_quantize
from mmx.ops.reference.moe import moe_combine


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, gemma: bool) -> torch.Tensor:
    wide = x.double() if x.dtype == torch.float64 else x.float()
    gain = weight.to(wide.dtype) + (1 if gemma else 0)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain).to(x.dtype)


def add_rms_norm(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, gemma: bool
) -> torch.Tensor:
    residual.add_(x)
    return rms_norm(residual, weight, eps, gemma)


def add_rms_norm_quantize(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, gemma: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = add_rms_norm(residual, x, weight, eps, gemma)
    return out, *fp8_quantize(out)


def combine_add_rms_norm(
    residual: torch.Tensor,
    x: torch.Tensor,
    row_positions: torch.Tensor,
    topk_weights: torch.Tensor,
    shared: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    gemma: bool,
    quantize: bool = False,
) -> tuple[torch.Tensor, ...]:
    part = moe_combine(x, row_positions, topk_weights, shared)
    if quantize:
        return add_rms_norm_quantize(residual, part, weight, eps, gemma)
    return (add_rms_norm(residual, part, weight, eps, gemma),)
