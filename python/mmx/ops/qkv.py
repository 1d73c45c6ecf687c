"""From a merged projection to what attention over pages reads: norms, rope and page stores in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
    """``rms_norm`` and ``rope`` of q, k and the index heads, then ``kv_store`` and ``index_k_store``.

    q and index_q are replaced in ``qkv``; k and index_k there are unspecified afterwards, v is unchanged.

    Args:
        qkv: [num_tokens, heads, head_dim], f32 or bf16, heads q | k | v or, with an indexer,
            q | k | index_q | index_k | v; tokens may be strided.
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], dtype of ``qkv`` or e4m3.
        index_k_cache: [num_blocks, block_size, head_dim], dtype of ``qkv`` or e4m3; None without an indexer.
        q_weight, k_weight: [head_dim] norms each head alone; [num_heads * head_dim] and
            [num_kv_heads * head_dim] norm the whole projection. f32 or bf16.
        index_q_weight, index_k_weight: [head_dim], given with ``index_k_cache``.
        cos_sin, positions: as for ``rope``.
        slot_mapping: [num_tokens] int64 as for ``kv_store``; a negative slot stores nothing.
        num_heads: query heads.
        eps, gemma: as for ``rms_norm``.
        k_scale, v_scale: [num_kv_heads] f32 as for ``kv_store``.
        mean_squares: [num_tokens, 2] f32 of ``qk_mean_squares``, where other ranks hold parts of a whole
            projection, of which ``q_weight`` and ``k_weight`` are those of the heads here; None: of these
            heads alone.
    """
    pages = (k_cache, v_cache, index_k_cache)
    weights = (q_weight, k_weight, index_q_weight, index_k_weight)
    where, options = (cos_sin, positions, slot_mapping), (k_scale, v_scale, mean_squares)
    torch.ops.mmx.norm_rope_store(qkv, *pages, *weights, *where, num_heads, eps, gemma, *options)


def qk_mean_squares(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    num_parts: int,
    inboxes: Sequence[torch.Tensor] = (),
    epochs: torch.Tensor | None = None,
    rank: int = 0,
    timeout: float = 0.0,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squares of q and of k over all their heads, of which each rank holds one of ``num_parts`` equally
    wide parts: sum of squares / (width of the part * num_parts), summed over the ranks in their order.

    Args:
        qkv: [num_tokens, heads, head_dim], f32 or bf16, heads q | k | any others; tokens may be strided.
        inboxes, epochs, rank, timeout: as for ``all_reduce_add_rms_norm``; without inboxes the result is
            this rank's share, still to be summed over the ranks.
        out: [num_tokens, 2] f32.
    """
    out = torch.empty((qkv.shape[0], 2), dtype=torch.float32, device=qkv.device) if out is None else out
    torch.ops.mmx.qk_mean_squares(
        out, qkv, num_heads, num_kv_heads, num_parts, list(inboxes), epochs, rank, timeout
    )
    return out
