"""Root mean square norms, plain (``x * w``) and Gemma form (``x * (1 + w)``)."""

from __future__ import annotations

import torch

from mmx.ops.fp8 import empty_codes


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, gemma: bool, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Norm over the last dimension.

    Args:
        x: [num_tokens, hidden] or [num_tokens, num_heads, hidden] (per-head norm), f32 or bf16; rows may be
            strided.
        weight: [hidden], f32 or bf16.
        eps: added to the mean square.
        gemma: multiply by ``1 + weight`` instead of ``weight``.
        out: like ``x``; may be ``x``.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    torch.ops.mmx.rms_norm(out, x, weight, eps, gemma)
    return out


def add_rms_norm(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gemma: bool,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``residual += x`` in place (rounded to its dtype), then the norm of the sum.

    Args:
        residual: [num_tokens, hidden], updated.
        x: [num_tokens, hidden], the branch to add.
        weight, eps, gemma: as for ``rms_norm``.
        out: like ``x``; may be ``x``.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    torch.ops.mmx.add_rms_norm(out, residual, x, weight, eps, gemma)
    return out


def add_rms_norm_quantize(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gemma: bool,
    *,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``add_rms_norm``, then ``fp8_quantize`` of what it gives; arguments as there, hidden a multiple of 128.

    Returns:
        the norm like ``x``; its codes [num_tokens, hidden] e4m3; their scale [num_tokens, hidden / 128] f32.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    codes, scale = empty_codes(out.shape, out.device)
    torch.ops.mmx.add_rms_norm_quantize(out, codes, scale, residual, x, weight, eps, gemma)
    return out, codes, scale


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
    """``moe_combine`` of the expert rows ``x``, then ``add_rms_norm`` of that; arguments as there.

    Returns:
        the norm like ``residual`` and, if ``quantize``, what ``fp8_quantize`` makes of it: codes and scale as
        from ``add_rms_norm_quantize``.
    """
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    codes = empty_codes(out.shape, out.device) if quantize else ()
    rows = (x, row_positions, topk_weights, shared)
    torch.ops.mmx.combine_add_rms_norm(out, *(codes or (None, None)), residual, *rows, weight, eps, gemma)
    return out, *codes
