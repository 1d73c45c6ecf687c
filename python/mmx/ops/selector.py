"""Block selector of M3's sparse attention."""

from __future__ import annotations

import torch

from mmx.ops._lib import call


def select_blocks(
    index_q: torch.Tensor,
    index_k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    topk: int,
    init_blocks: int,
    local_blocks: int,
    *,
    fixed_split: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The ``topk`` blocks of its sequence that each (token, index head) attends to.

    Score of a block = max over its visible tokens of ``index_q . index_k`` in fp32. The last ``local_blocks``
    visible and the first ``init_blocks`` blocks are always kept; others by (score descending, id ascending).

    Args:
        index_q: [num_tokens, num_index_heads, index_dim], f32 or bf16; tokens and heads may be strided.
        index_k_cache: [num_blocks, block_size, index_dim], type of ``index_q`` or float8_e4m3fn.
        block_table: [num_seqs, max_blocks_per_seq] int32, page of each logical block.
        cu_seqlens_q: [num_seqs + 1] int32, prefix sums of query lengths.
        seq_lens: [num_seqs] int32, context length including this step's tokens.
        max_seqlen_q: upper bound of a query length.
        fixed_split: a row's result depends, bit for bit, on its own query and context alone (see
            ``cpp/core/params/selector.h``).

    Returns:
        [num_tokens, num_index_heads, topk] int32 logical block ids, ascending, -1 in unused tail places.
    """
    if out is None:
        shape = (index_q.shape[0], index_q.shape[1], topk)
        out = torch.empty(shape, dtype=torch.int32, device=index_q.device)
    tensors = (out, index_q, index_k_cache, block_table, cu_seqlens_q, seq_lens)
    call("select_blocks", tensors, max_seqlen_q, init_blocks, local_blocks, fixed_split)
    return out
