from __future__ import annotations

from collections.abc import Sequence

import torch

from mmx.ops.reference.comm import exchange
from mmx.ops.reference.kv_cache import index_k_store, kv_store
from mmx.ops.reference.norm import rms_norm
from mmx.ops.reference.rope import rope


def norm_rope_store(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    index_k_cache: torch.Tensor | None,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    index_q_weight: torch.Tensor | None,
    index_k_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    eps: float,
    gemma: bool,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    mean_squares: torch.Tensor | None = None,
) -> None:
    def prepare(heads: torch.Tensor, weight: torch.Tensor, given: int | None = None) -> torch.Tensor:
        rows = heads.flatten(1)
        if mean_squares is None or given is None:
            normed = rms_norm(heads if weight.numel() == heads.shape[2] else rows, weight, eps, gemma)
        else:
            wide = rows.double() if rows.dtype == torch.float64 else rows.float()
            gain = weight.to(wide.dtype) + (1 if gemma else 0)
            normed = (wide * torch.rsqrt(mean_squares[:, given, None] + eps) * gain).to(rows.dtype)
        return rope(normed.view_as(heads), cos_sin, positions)

    num_kv_heads = k_cache.shape[1]
    q, k, index, v = qkv.tensor_split([num_heads, num_heads + num_kv_heads, qkv.shape[1] - num_kv_heads], 1)
    q.copy_(prepare(q, q_weight, 0))
    kv_store(k_cache, v_cache, prepare(k, k_weight, 1), v, slot_mapping, k_scale, v_scale)
    if index_k_cache is not None:
        assert index_q_weight is not None and index_k_weight is not None
        index_q, index_k = index[:, :-1], index[:, -1:]
        index_q.copy_(prepare(index_q, index_q_weight))
        index_k_store(index_k_cache, prepare(index_k, index_k_weight).squeeze(1), slot_mapping)


def qk_mean_squares(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    num_parts: int,
    inboxes: Sequence[torch.Tensor] = (),
    epochs: torch.Tensor | None = None,
    rank: int = 0,
    timeout: float = 0.0,
) -> torch.Tensor:
    wide = qkv.double() if qkv.dtype == torch.float64 else qkv.float()
    q, k, _ = wide.tensor_split([num_heads, num_heads + num_kv_heads], 1)
    share = torch.stack([part.square().mean((1, 2)) / num_parts for part in (q, k)], 1)
    if epochs is None:
        return share
    return exchange(share.float(), inboxes, epochs, rank, timeout).sum(0)
