from __future__ import annotations

import torch

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
) -> None:
    def prepare(heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = heads if weight.numel() == heads.shape[2] else heads.flatten(1)
        return rope(rms_norm(rows, weight, eps, gemma).view_as(heads), cos_sin, positions)

    num_kv_heads = k_cache.shape[1]
    q, k, index, v = qkv.tensor_split([num_heads, num_heads + num_kv_heads, qkv.shape[1] - num_kv_heads], 1)
    q.copy_(prepare(q, q_weight))
    kv_store(k_cache, v_cache, prepare(k, k_weight), v, slot_mapping, k_scale, v_scale)
    if index_k_cache is not None:
        assert index_q_weight is not None and index_k_weight is not None
        index_q, index_k = index[:, :-1], index[:, -1:]
        index_q.copy_(prepare(index_q, index_q_weight))
        index_k_store(index_k_cache, prepare(index_k, index_k_weight).squeeze(1), slot_mapping)
