"""Causal grouped-query attention over pages, dense and block-sparse, prefill and decode in one batch."""

from __future__ import annotations

import torch

from mmx.ops._lib import call


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    fixed_split: bool = False,
    codes: torch.Tensor | None = None,
    codes_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each query token to every earlier token of its sequence and itself.

    Args:
        q: [num_tokens, num_heads, head_dim], f32 or bf16; tokens and heads may be strided.
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim]; this step's K, V already stored;
            type of ``q``, or float8_e4m3fn codes.
        block_table: [num_seqs, max_blocks_per_seq] int32.
        cu_seqlens_q: [num_seqs + 1] int32, prefix sums of query lengths.
        seq_lens: [num_seqs] int32, context length including this step's tokens.
        max_seqlen_q: upper bound of a query length.
        scale: factor of the scores, 1 / sqrt(head_dim).
        k_scale, v_scale: [num_kv_heads] float32, what codes of float8 pages are worth; ``None`` = 1.
        fixed_split: a row's result depends, bit for bit, on its own query and context alone, not on its batch
            (see ``cpp/core/params/attention.h``); costs time on a GPU.
        codes, codes_scale: [num_tokens, num_heads * head_dim] float8_e4m3fn and a float32 per 128 columns, to
            be given what ``fp8_quantize`` makes of the result; or neither.

    Returns:
        [num_tokens, num_heads, head_dim].
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    tensors = (out, q, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens)
    options = (k_scale, v_scale, fixed_split, codes, codes_scale)
    call("paged_attention", tensors, max_seqlen_q, scale, *options)
    return out


def sparse_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_ids: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    fixed_split: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``paged_attention`` restricted to ``block_ids``: [num_tokens, num_kv_heads, topk] int32 logical blocks,
    ascending, -1 at the tail (from ``select_blocks``); the causal mask applies inside the last block."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    tensors = (out, q, k_cache, v_cache, block_ids, block_table, cu_seqlens_q, seq_lens)
    call("sparse_attention", tensors, max_seqlen_q, scale, k_scale, v_scale, fixed_split)
    return out
