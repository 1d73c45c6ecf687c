"""Partial rotary embedding, rotate-half pairing."""

from __future__ import annotations

import torch


def rope(
    x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotates the first ``rotary_dim`` dims of each head, pair ``(i, i + rotary_dim / 2)``; copies the rest.

    Args:
        x: [num_tokens, num_heads, head_dim], f32 or bf16; tokens and heads may be strided.
        cos_sin: [max_positions, rotary_dim] f32, from ``rope_table``.
        positions: [num_tokens] int64, each below ``max_positions``.
        out: like ``x``; may be ``x``.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    torch.ops.mmx.rope(out, x, cos_sin, positions)
    return out


def rope_table(max_positions: int, rotary_dim: int, theta: float) -> torch.Tensor:
    """[max_positions, rotary_dim] f32 on the CPU: cos of ``position * theta^(-2i / rotary_dim)``, then
    sin."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), 1.0 / theta**exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
