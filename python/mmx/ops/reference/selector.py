from __future__ import annotations

from itertools import pairwise

import torch


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
    fixed_split: bool = False,
) -> torch.Tensor:
    out = torch.full((*index_q.shape[:2], topk), -1, dtype=torch.int32, device=index_q.device)
    block_size = index_k_cache.shape[1]
    bounds = cu_seqlens_q.tolist()
    for seq, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        seq_len = int(seq_lens[seq])
        num_blocks = -(-seq_len // block_size)
        keys = index_k_cache[block_table[seq, :num_blocks].long()].flatten(0, 1)[:seq_len]
        scores = block_scores(index_q[begin:end], keys, block_size)  # [q_len, num_index_heads, num_blocks]

        block = torch.arange(num_blocks, device=index_q.device)
        position = torch.arange(seq_len - (end - begin), seq_len, device=index_q.device)[:, None, None]
        num_visible = position // block_size + 1  # [q_len, 1, 1]
        forced = (block < num_visible) & ((block < init_blocks) | (block >= num_visible - local_blocks))
        # Two stable sorts: by score, equal ones by id; then the forced ones to the front.
        by_score = scores.sort(dim=-1, descending=True, stable=True).indices
        is_forced = forced.expand_as(scores).gather(-1, by_score).int()
        ranked = by_score.gather(-1, is_forced.sort(dim=-1, descending=True, stable=True).indices)
        kept = torch.where(block < num_visible.clamp(max=topk), ranked, num_blocks)
        ids = kept.sort(-1).values[..., :topk]
        out[begin:end, :, : ids.shape[-1]] = ids.masked_fill(ids == num_blocks, -1).int()
    return out


def block_scores(index_q: torch.Tensor, keys: torch.Tensor, block_size: int) -> torch.Tensor:
    """Best visible token score of each block of one sequence whose last tokens are the queries.

    Args:
        index_q: [q_len, num_index_heads, index_dim].
        keys: [seq_len, index_dim].

    Returns:
        [q_len, num_index_heads, num_blocks] f32 (f64 for f64 queries); -inf where nothing is visible.
    """
    wide = torch.float64 if index_q.dtype == torch.float64 else torch.float32
    q_len, seq_len = index_q.shape[0], keys.shape[0]
    scores = index_q.to(wide) @ keys.to(wide).T
    position = torch.arange(seq_len - q_len, seq_len, device=keys.device)[:, None, None]
    hidden = torch.arange(seq_len, device=keys.device) > position
    scores = scores.masked_fill(hidden | scores.isnan(), float("-inf"))
    padding = (0, -seq_len % block_size)
    scores = torch.nn.functional.pad(scores, padding, value=float("-inf"))
    return scores.unflatten(-1, (-1, block_size)).amax(-1)
