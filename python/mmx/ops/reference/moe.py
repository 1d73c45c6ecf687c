from __future__ import annotations

from itertools import pairwise

import torch

from mmx.ops.reference.activation import gated_act
from mmx.ops.reference.quant import fp8_block_dequant


def moe_router(
    x: torch.Tensor, gate_weight: torch.Tensor, bias: torch.Tensor | None, topk: int, routed_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    s = torch.sigmoid(x.to(wide) @ gate_weight.to(wide).T)
    score = s if bias is None else s + bias
    # A NaN ranks last: a broken token must not shift the ids of ties.
    rank = score.where(~score.isnan(), float("-inf"))
    ids = rank.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    chosen = s.gather(1, ids)
    total = chosen.sum(-1, keepdim=True)
    weights = torch.where(total == 0, 0, routed_scale * chosen / total)
    return ids.int(), weights


def moe_plan(
    topk_ids: torch.Tensor, first_expert: int, num_local_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    expert = topk_ids.flatten().long() - first_expert
    expert = expert.where((expert >= 0) & (expert < num_local_experts), num_local_experts)
    sorted_rows = expert.sort(stable=True).indices
    counts = expert.bincount(minlength=num_local_experts + 1)[:num_local_experts]
    expert_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    position = torch.arange(expert.numel(), device=expert.device)
    row_positions = torch.empty_like(expert)
    row_positions[sorted_rows] = position.where(position < counts.sum(), -1)
    return expert_offsets.int(), sorted_rows.int(), row_positions.int()


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
    ids, weights = moe_router(x, gate_weight, bias, topk - num_shared, routed_scale)
    shared = torch.arange(num_shared, dtype=ids.dtype, device=ids.device) + gate_weight.shape[0]
    ids = torch.cat([ids, shared.expand(ids.shape[0], -1)], 1)
    weights = torch.nn.functional.pad(weights, (0, num_shared), value=1.0)
    return ids, weights, *moe_plan(ids, first_expert, num_local_experts)


def moe_gate_up(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None,
    expert_offsets: torch.Tensor,
    sorted_rows: torch.Tensor,
    activation: int,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> torch.Tensor:
    topk = sorted_rows.shape[0] // max(x.shape[0], 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.new_zeros(sorted_rows.shape[0], weight.shape[1] // 2)
    for e, (begin, end) in enumerate(pairwise(expert_offsets.tolist())):
        tokens = sorted_rows[begin:end].long() // max(topk, 1)
        gate_up = x[tokens].to(wide) @ _expert(weight, weight_scale, e, wide).T
        out[begin:end] = gated_act(gate_up, activation, alpha, limit).to(x.dtype)
    return out


def moe_down(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor | None, expert_offsets: torch.Tensor
) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.new_zeros(x.shape[0], weight.shape[1])
    for e, (begin, end) in enumerate(pairwise(expert_offsets.tolist())):
        out[begin:end] = (x[begin:end].to(wide) @ _expert(weight, weight_scale, e, wide).T).to(x.dtype)
    return out


def moe_combine(
    x: torch.Tensor,
    row_positions: torch.Tensor,
    topk_weights: torch.Tensor,
    shared: torch.Tensor | None = None,
) -> torch.Tensor:
    num_tokens, topk = topk_weights.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    positions = row_positions.view(num_tokens, topk).long()
    total = torch.zeros(num_tokens, x.shape[1], dtype=wide, device=x.device)
    for k in range(topk):
        position = positions[:, k : k + 1]
        rows = x[position.squeeze(1).clamp(min=0)].to(wide)
        total += torch.where(position >= 0, topk_weights[:, k : k + 1].to(wide) * rows, 0)
    return (total if shared is None else total + shared.to(wide)).to(x.dtype)


def _expert(
    weight: torch.Tensor, weight_scale: torch.Tensor | None, e: int, dtype: torch.dtype
) -> torch.Tensor:
    if weight_scale is None:
        return weight[e].to(dtype)
    return fp8_block_dequant(weight[e], weight_scale[e], dtype)
