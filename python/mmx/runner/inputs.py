"""ScheduledBatch to ForwardBatch: a few vectorised host arrays, one copy per tensor."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from mmx.batch import ScheduledBatch
from mmx.layers import ForwardBatch, LayerCache
from mmx.runner.parts import Part


def make_inputs(
    batch: ScheduledBatch,
    *,
    block_size: int,
    device: torch.device,
    cos_sin: torch.Tensor,
    caches: list[LayerCache],
    part: Part | None = None,
) -> ForwardBatch:
    """Tensors of one step on ``device``; ``logit_rows`` are the last tokens of the sequences that sample.

    ``part`` is how ``batch`` stands among those of the other ranks, None for the only rank."""
    seqs = batch.seqs
    num_new = np.array([len(seq.token_ids) for seq in seqs], np.int64)
    starts = np.array([seq.start for seq in seqs], np.int64)
    cu_seqlens = np.zeros(len(seqs) + 1, np.int32)
    np.cumsum(num_new, out=cu_seqlens[1:])
    num_tokens = int(cu_seqlens[-1])

    num_columns = max((len(seq.block_ids) for seq in seqs), default=1)
    block_table = np.zeros((len(seqs), num_columns), np.int32)
    for row, seq in zip(block_table, seqs, strict=True):
        row[: len(seq.block_ids)] = seq.block_ids

    owners = np.repeat(np.arange(len(seqs)), num_new)
    positions = np.arange(num_tokens) + (starts - cu_seqlens[:-1])[owners]
    slots = (
        block_table[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size
    )
    token_ids = np.fromiter(chain.from_iterable(seq.token_ids for seq in seqs), np.int64, num_tokens)
    samples = np.array([seq.samples for seq in seqs], bool)
    all_sample = num_tokens == len(seqs) and bool(samples.all())

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return ForwardBatch(
        token_ids=put(token_ids),
        positions=put(positions),
        slot_mapping=put(slots if part is None else _stored_slots(part, block_size, slots)),
        block_table=put(block_table),
        cu_seqlens_q=put(cu_seqlens),
        seq_lens=put((starts + num_new).astype(np.int32)),
        max_seqlen_q=int(num_new.max(initial=0)),
        logit_rows=None if all_sample else put(cu_seqlens[1:][samples].astype(np.int64) - 1),
        cos_sin=cos_sin,
        caches=caches,
        token_counts=() if part is None else part.token_counts,
        context_counts=() if part is None else tuple(stored.num_tokens for stored in part.stored),
    )


def _stored_slots(part: Part, block_size: int, own: np.ndarray) -> np.ndarray:
    """Where the tokens of all context ranks are stored, in the order of these ranks."""
    if len(part.stored) == 1:
        return own
    return np.array(
        [
            seq.block_ids[position // block_size] * block_size + position % block_size
            for batch in part.stored
            for seq in batch.seqs
            for position in range(seq.start, seq.start + len(seq.token_ids))
        ],
        np.int64,
    )
