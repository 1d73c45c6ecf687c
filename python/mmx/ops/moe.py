"""Mixture of experts: router, expert plan, grouped GEMMs, weighted combine.

A token's result does not depend on the other tokens of a call, bit for bit.
"""

from __future__ import annotations

import torch

from mmx.ops._lib import call
from mmx.ops.activation import Activation


def moe_router(
    x: torch.Tensor, gate_weight: torch.Tensor, bias: torch.Tensor | None, topk: int, routed_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses experts: ``s = sigmoid(x @ gate_weight.T)`` in fp32, the ``topk`` largest ``s + bias`` (ties:
    lower id), weights ``routed_scale * s / sum(s of the chosen)``.

    Args:
        x: [num_tokens, hidden], f32 or bf16; rows may be strided.
        gate_weight: [num_experts, hidden] f32.
        bias: [num_experts] f32 or None.

    Returns:
        topk_ids [num_tokens, topk] int32, best first; topk_weights [num_tokens, topk] f32.
    """
    topk_ids = torch.empty((x.shape[0], topk), dtype=torch.int32, device=x.device)
    topk_weights = torch.empty((x.shape[0], topk), dtype=torch.float32, device=x.device)
    call("moe_router", (topk_ids, topk_weights, x, gate_weight, bias), routed_scale)
    return topk_ids, topk_weights


def moe_plan(
    topk_ids: torch.Tensor, first_expert: int, num_local_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sorts rows (token, k) by expert, stable in token order; other ranks' experts are left out.

    Args:
        topk_ids: [num_tokens, topk] int32.

    Returns:
        expert_offsets [num_local_experts + 1] int32, prefix sums of rows per expert; sorted_rows
        [num_tokens * topk] int32, ``token * topk + k`` of each sorted row (undefined beyond the last offset);
        row_positions [num_tokens * topk] int32, its inverse, -1 for left-out rows.
    """
    plan = _plan_of(topk_ids, num_local_experts)
    call("moe_plan", (*plan, topk_ids), first_expert)
    return plan


def moe_router_plan(
    x: torch.Tensor,
    gate_weight: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    routed_scale: float,
    first_expert: int,
    num_local_experts: int,
    num_shared: int = 0,
) -> tuple[torch.Tensor, ...]:
    """``moe_router``, then ``moe_plan`` of its choice. Behind the experts of the router come ``num_shared``
    that every token goes to with weight 1; ``topk`` and ``num_local_experts`` count them too.

    Returns:
        topk_ids and topk_weights [num_tokens, topk], the shared experts last; expert_offsets, sorted_rows,
        row_positions.
    """
    topk_ids = torch.empty((x.shape[0], topk), dtype=torch.int32, device=x.device)
    topk_weights = torch.empty((x.shape[0], topk), dtype=torch.float32, device=x.device)
    outputs = (topk_ids, topk_weights, *_plan_of(topk_ids, num_local_experts))
    call("moe_router_plan", (*outputs, x, gate_weight, bias), routed_scale, first_expert, num_shared)
    return outputs


def moe_gate_up(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None,
    expert_offsets: torch.Tensor,
    sorted_rows: torch.Tensor,
    activation: Activation,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> torch.Tensor:
    """Grouped GEMM of gate and up with the activation fused: row m of the plan gets
    ``act(x[token] @ gate.T, x[token] @ up.T)`` of its expert.

    Args:
        x: [num_tokens, hidden], f32 or bf16; rows may be strided.
        weight: [num_local_experts, 2 * inter, hidden], gate rows first; x's dtype or e4m3.
        weight_scale: [num_local_experts, ceil(2 * inter / 128), ceil(hidden / 128)] f32 with e4m3, else None.
        expert_offsets, sorted_rows: from ``moe_plan``.

    Returns:
        [num_tokens * topk, inter] in plan order (undefined beyond the last offset).
    """
    out = torch.empty((sorted_rows.shape[0], weight.shape[1] // 2), dtype=x.dtype, device=x.device)
    tensors = (out, x, weight, weight_scale, expert_offsets, sorted_rows)
    call("moe_gate_up", tensors, int(activation), alpha, limit)
    return out


def moe_down(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor | None, expert_offsets: torch.Tensor
) -> torch.Tensor:
    """Grouped GEMM of the down projection.

    Args:
        x: [num_rows, inter] in plan order.
        weight: [num_local_experts, hidden, inter], x's dtype or e4m3.
        weight_scale: [num_local_experts, ceil(hidden / 128), ceil(inter / 128)] f32 with e4m3, else None.
        expert_offsets: from ``moe_plan``.

    Returns:
        [num_rows, hidden] in plan order (undefined beyond the last offset).
    """
    out = torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device=x.device)
    call("moe_down", (out, x, weight, weight_scale, expert_offsets))
    return out


def moe_combine(
    x: torch.Tensor,
    row_positions: torch.Tensor,
    topk_weights: torch.Tensor,
    shared: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum of each token's expert rows, k ascending in fp32, plus the shared expert.

    Args:
        x: [num_tokens * topk, hidden] in plan order.
        row_positions: [num_tokens * topk] int32 from ``moe_plan``.
        topk_weights: [num_tokens, topk] f32.
        shared: [num_tokens, hidden] or None.

    Returns:
        [num_tokens, hidden].
    """
    if out is None:
        out = torch.empty((topk_weights.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    torch.ops.mmx.moe_combine(out, x, row_positions, topk_weights, shared)
    return out


def _plan_of(
    topk_ids: torch.Tensor, num_local_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for expert_offsets, sorted_rows and row_positions."""
    num_rows = topk_ids.numel()
    return (
        topk_ids.new_empty(num_local_experts + 1),
        topk_ids.new_empty(num_rows),
        topk_ids.new_empty(num_rows),
    )
