"""Gated activations of the MLPs."""

from __future__ import annotations

import enum

import torch


class Activation(enum.IntEnum):
    """SILU: ``silu(g) * u``. SWIGLU_OAI: ``g' sigmoid(alpha g') (u' + 1)`` with ``g' = min(g, limit)`` and
    ``u' = clamp(u, -limit, limit)``."""

    SILU = 0
    SWIGLU_OAI = 1


def gated_act(
    gate_up: torch.Tensor,
    activation: Activation,
    alpha: float = 1.702,
    limit: float = 7.0,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``act(gate, up)`` in fp32.

    Args:
        gate_up: [num_tokens, 2 * inter], gate first, f32 or bf16; rows may be strided.
        activation: which formula; ``alpha`` and ``limit`` are read by SWIGLU_OAI only.

    Returns:
        [num_tokens, inter].
    """
    if out is None:
        shape = (gate_up.shape[0], gate_up.shape[1] // 2)
        out = torch.empty(shape, dtype=gate_up.dtype, device=gate_up.device)
    torch.ops.mmx.gated_act(out, gate_up, int(activation), alpha, limit)
    return out
