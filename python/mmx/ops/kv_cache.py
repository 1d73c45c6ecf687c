"""Stores of K, V and index-K into pages."""

from __future__ import annotations

import torch


def kv_store(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Writes each token's K and V to its slot.

    Args:
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], updated; of the type of ``k``, or
            float8_e4m3fn, which gets ``x / scale`` rounded to nearest even and clamped to +-448.
        k, v: [num_tokens, num_kv_heads, head_dim]; tokens and heads may be strided.
        slot_mapping: [num_tokens] int64, ``block_id * block_size + offset``; negative = skip. Distinct.
        k_scale, v_scale: [num_kv_heads] float32 of float8 pages, ``None`` = 1; both or neither.
    """
    torch.ops.mmx.kv_store(k_cache, v_cache, k, v, slot_mapping, k_scale, v_scale)


def index_k_store(index_k_cache: torch.Tensor, index_k: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """Writes each token's index key to its slot.

    Args:
        index_k_cache: [num_blocks, block_size, index_dim], updated; float8_e4m3fn pages have no scale.
        index_k: [num_tokens, index_dim]; tokens may be strided.
        slot_mapping: as for ``kv_store``.
    """
    torch.ops.mmx.index_k_store(index_k_cache, index_k, slot_mapping)
