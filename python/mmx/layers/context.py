"""Attention to a context whose pages are spread over the ranks of a decode group.

Of each page of the scheduler, ``size`` sparse blocks long, rank i of the group holds the i-th block: block
``page * size + i`` of a sequence. Every rank attends to its own blocks with the query heads of all ranks; the
parts are merged by their sums of exponentials. Composed of torch operations: pages are gathered sequence by
sequence, so this saves memory, not time.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from mmx.distributed import Group
from mmx.layers.batch import ForwardBatch, LayerCache

# Scores that are held at once, 256 MiB of f32.
MAX_SCORES = 1 << 26


def spread_attention(
    group: Group,
    q: torch.Tensor,
    cache: LayerCache,
    batch: ForwardBatch,
    scale: float,
    index_q: torch.Tensor | None,
    selection: tuple[int, int, int],
) -> torch.Tensor:
    """Causal attention of this rank's heads: [num_tokens, num_heads, head_dim].

    Args:
        q: [num_tokens, num_heads, head_dim], those of this rank.
        cache: pages of this rank, with the KV heads of all of the group's query heads.
        index_q: [num_tokens, num_kv_heads, index_dim] restricts attention to the indexer's choice of blocks.
        selection: its (topk, init_blocks, local_blocks), as in ``ops.select_blocks``.
    """
    num_tokens, num_heads, head_dim = q.shape
    heads = group.all_gather(q.contiguous()).view(group.size, num_tokens, num_heads, head_dim)
    heads = heads.transpose(0, 1).reshape(num_tokens, group.size * num_heads, head_dim)
    chosen = None if index_q is None else _select(group, index_q, cache, batch, selection)
    out, lse = _own_part(group, heads, cache, batch, scale, chosen)
    # [size, num_tokens, heads of the group]; a part without keys has weight 0.
    weights = group.all_gather(lse).view(group.size, *lse.shape).softmax(0)[group.rank]
    parts = (out * weights.unsqueeze(-1)).view(num_tokens, group.size, num_heads, head_dim)
    merged = group.reduce_scatter(parts.transpose(0, 1).flatten(0, 1).contiguous())
    return merged.to(q.dtype)


def _visible(group: Group, positions: torch.Tensor, block_size: int) -> torch.Tensor:
    """How many of this rank's tokens of the sequence lie at or before each position."""
    length, whole = positions + 1, group.size * block_size
    rest = length % whole - group.rank * block_size
    return length // whole * block_size + rest.clamp(0, block_size)


def _own_part(
    group: Group,
    q: torch.Tensor,
    cache: LayerCache,
    batch: ForwardBatch,
    scale: float,
    chosen: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to this rank's tokens: [num_tokens, heads, head_dim] f32 and the log of the sums of
    exponentials [num_tokens, heads]. ``chosen``: [num_tokens, num_kv_heads, own blocks] bool."""
    num_kv_heads, block_size, head_dim = cache.k.shape[1:]
    out = q.new_zeros(q.shape, dtype=torch.float32)
    lse = out.new_full(q.shape[:2], -torch.inf)
    visible = _visible(group, batch.positions, block_size)
    for seq, (begin, end) in enumerate(pairwise(batch.cu_seqlens_q.tolist())):
        num_keys = int(visible[end - 1]) if end > begin else 0
        if num_keys == 0:
            continue
        pages = batch.block_table[seq, : -(-num_keys // block_size)].long()
        # [num_kv_heads, num_keys, head_dim]
        k, v = (c[pages].transpose(0, 1).flatten(1, 2)[:, :num_keys].float() for c in (cache.k, cache.v))
        key = torch.arange(num_keys, device=q.device)
        for rows in torch.arange(begin, end).split(max(1, MAX_SCORES // (q.shape[1] * num_keys))):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            queries = q[here].float().view(len(rows), num_kv_heads, -1, head_dim)
            scores = torch.einsum("tkgd,knd->tkgn", queries, k) * scale
            seen = (key < visible[here, None])[:, None]
            if chosen is not None:
                seen = seen & chosen[here][:, :, key // block_size]
            scores = scores.masked_fill(~seen.unsqueeze(2), -torch.inf)
            part = torch.logsumexp(scores, -1)
            weights = (scores - part.clamp(min=torch.finfo(torch.float32).min).unsqueeze(-1)).exp()
            out[here] = torch.einsum("tkgn,knd->tkgd", weights, v).flatten(1, 2)
            lse[here] = part.flatten(1)
    return out, lse


def _select(
    group: Group,
    index_q: torch.Tensor,
    cache: LayerCache,
    batch: ForwardBatch,
    selection: tuple[int, int, int],
) -> torch.Tensor:
    """Which of this rank's blocks are among the best of all ranks: each proposes its own best, the proposals
    are merged. [num_tokens, index heads, own blocks] bool."""
    assert cache.index_k is not None, "a block-sparse layer has index-K pages"
    topk, init_blocks, local_blocks = selection
    block_size = cache.index_k.shape[1]
    own = torch.arange(batch.block_table.shape[1], device=index_q.device)
    block = own * group.size + group.rank
    scores = _block_scores(group, index_q, cache.index_k, batch)
    num_blocks = (batch.positions // block_size + 1)[:, None, None]
    forced = (block < init_blocks) | (block >= num_blocks - local_blocks)
    # Why a pair: a forced block beats every score, infinite ones too.
    rank_of = forced.expand_as(scores) & (block < num_blocks)
    proposed = _best(rank_of, scores, block.expand_as(scores), block < num_blocks, topk)
    merged = group.all_gather(proposed.contiguous()).view(group.size, *proposed.shape)
    forced_all, scores_all, blocks_all = merged.permute(1, 2, 0, 4, 3).flatten(2, 3).unbind(-1)
    best = _best(forced_all > 0, scores_all, blocks_all.long(), blocks_all >= 0, topk)[:, :, 2]
    return (best.unsqueeze(-1) == block).any(2)


def _best(
    forced: torch.Tensor, scores: torch.Tensor, blocks: torch.Tensor, valid: torch.Tensor, topk: int
) -> torch.Tensor:
    """(forced, score, block) of the ``topk`` first by forced, score descending, block ascending: [num_tokens,
    index heads, 3, topk] f32, block -1 where there are fewer."""
    order = blocks.sort(dim=-1, stable=True).indices
    for key in (scores, forced.float(), valid.expand_as(scores).float()):
        order = order.gather(-1, key.gather(-1, order).sort(dim=-1, descending=True, stable=True).indices)
    order = order[..., :topk]
    kept = valid.expand_as(scores).gather(-1, order)
    chosen = blocks.gather(-1, order).float().masked_fill(~kept, -1.0)
    found = torch.stack([forced.float().gather(-1, order), scores.gather(-1, order), chosen], 2)
    missing = (0, topk - order.shape[-1])
    return torch.nn.functional.pad(found, missing, value=-1.0)


def _block_scores(
    group: Group, index_q: torch.Tensor, index_k: torch.Tensor, batch: ForwardBatch
) -> torch.Tensor:
    """Best score of a visible token of each own block, -inf without one: [num_tokens, index heads, own
    blocks]."""
    block_size = index_k.shape[1]
    num_tokens, num_heads, _ = index_q.shape
    num_own = batch.block_table.shape[1]
    scores = index_q.new_full((num_tokens, num_heads, num_own), -torch.inf, dtype=torch.float32)
    visible = _visible(group, batch.positions, block_size)
    for seq, (begin, end) in enumerate(pairwise(batch.cu_seqlens_q.tolist())):
        num_keys = int(visible[end - 1]) if end > begin else 0
        if num_keys == 0:
            continue
        num_blocks = -(-num_keys // block_size)
        keys = index_k[batch.block_table[seq, :num_blocks].long()].flatten(0, 1).float()
        dots = index_q[begin:end].float() @ keys.T
        hidden = torch.arange(keys.shape[0], device=keys.device) >= visible[begin:end, None, None]
        dots = dots.masked_fill(hidden | dots.isnan(), -torch.inf)
        scores[begin:end, :, :num_blocks] = dots.unflatten(-1, (num_blocks, block_size)).amax(-1)
    return scores
