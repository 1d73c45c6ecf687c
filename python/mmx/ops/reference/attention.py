from __future__ import annotations

from itertools import pairwise

import torch

from mmx.ops.reference.fp8 import fp8_quantize


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    fixed_split: bool = False,
    codes: torch.Tensor | None = None,
    codes_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    where = (block_table, cu_seqlens_q, seq_lens, max_seqlen_q)
    out = sparse_attention(q, k_cache, v_cache, None, *where, scale, k_scale, v_scale, fixed_split)
    if codes is not None and codes_scale is not None:
        made, scales = fp8_quantize(out.flatten(1))
        codes.copy_(made)
        codes_scale.copy_(scales)
    return out


def sparse_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_ids: torch.Tensor | None,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    fixed_split: bool = False,
) -> torch.Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_kv_heads, block_size = k_cache.shape[1:3]
    out = torch.zeros_like(q)
    bounds = cu_seqlens_q.tolist()
    for seq, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        seq_len = int(seq_lens[seq])
        pages = block_table[seq, : -(-seq_len // block_size)].long()
        # [num_kv_heads, seq_len, head_dim], repeated per query head of the group
        k, v = (
            _values(cache[pages], cache_scale, wide).transpose(0, 1).flatten(1, 2)[:, :seq_len]
            for cache, cache_scale in ((k_cache, k_scale), (v_cache, v_scale))
        )
        group = q.shape[1] // num_kv_heads
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        key = torch.arange(seq_len, device=q.device)
        position = torch.arange(seq_len - (end - begin), seq_len, device=q.device)
        visible = (key <= position[:, None]).expand(q.shape[1], -1, -1)  # [num_heads, q_len, seq_len]
        if block_ids is not None:
            # [q_len, num_kv_heads, seq_len]
            chosen = (block_ids[begin:end, :, :, None] == key // block_size).any(2)
            visible = visible & chosen.transpose(0, 1).repeat_interleave(group, 0)
        scores = q[begin:end].transpose(0, 1).to(wide) @ k.transpose(1, 2) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out[begin:end] = (weights @ v).transpose(0, 1).to(q.dtype)
    return out


def _values(pages: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Pages [num_pages, num_kv_heads, block_size, head_dim] as numbers."""
    values = pages.to(dtype)
    return values if scale is None else values * scale.to(dtype)[:, None, None]
