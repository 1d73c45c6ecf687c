"""ScheduledBatch to ForwardBatch: a few vectorised host arrays, one copy for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from mmx.batch import PENDING, ScheduledBatch
from mmx.layers import ForwardBatch, LayerCache
from mmx.runner.parts import Part
from mmx.runner.upload import upload


class Holder(NamedTuple):
    """Of every page of ``size * block_size`` tokens this rank holds the part ``number``, ``block_size``
    long."""

    number: int
    size: int
    block_size: int

    def own(self, slots: np.ndarray) -> np.ndarray:
        """Places in this rank's pages, -1 for tokens of other ranks."""
        pages, offsets = np.divmod(slots, self.size * self.block_size)
        blocks, offsets = np.divmod(offsets, self.block_size)
        return np.where(blocks == self.number, pages * self.block_size + offsets, -1)


def make_inputs(
    batch: ScheduledBatch,
    *,
    block_size: int,
    device: torch.device,
    cos_sin: torch.Tensor,
    caches: list[LayerCache],
    part: Part | None = None,
    holder: Holder | None = None,
    sampled: torch.Tensor | None = None,
    sampled_rows: Mapping[str, int] = {},
) -> ForwardBatch:
    """Tensors of one step on ``device``; ``logit_rows`` are the last tokens of the sequences that sample, and
    all tokens of those with ``prompt_targets``.

    ``part`` is how ``batch`` stands among those of the other ranks, None for the only rank; ``holder`` says
    which tokens of a page this rank holds, None for all. ``PENDING`` tokens come from ``sampled`` [n] int64
    on ``device``, what the step before sampled; ``sampled_rows`` says in which row a request's token is."""
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
    if part is not None:
        slots = _stored_slots(part, block_size, slots)
    if holder is not None:
        slots = holder.own(slots)
    token_ids = np.fromiter(chain.from_iterable(seq.token_ids for seq in seqs), np.int64, num_tokens)
    samples = np.array([seq.samples for seq in seqs], bool)
    all_sample = num_tokens == len(seqs) and bool(samples.all())
    logit_rows = cu_seqlens[1:][samples].astype(np.int64) - 1
    explains = any(seq.prompt_targets for seq in seqs)
    if explains:
        wanted = samples[owners] & (np.arange(num_tokens) == cu_seqlens[1:][owners] - 1)
        logit_rows = np.flatnonzero(wanted | np.array([bool(seq.prompt_targets) for seq in seqs])[owners])

    pending = np.flatnonzero(token_ids == PENDING)
    pending_rows = [sampled_rows[seq.request_id] for seq in seqs if seq.token_ids[0] == PENDING]
    tensors = upload(
        [
            token_ids,
            positions,
            slots,
            block_table,
            cu_seqlens,
            (starts + num_new).astype(np.int32),
            logit_rows,
            pending.astype(np.int64),
            np.array(pending_rows, np.int64),
            np.flatnonzero(samples),
        ],
        device,
    )
    if pending_rows:
        assert sampled is not None, "pending tokens need the ids that the step before sampled"
        tensors[0][tensors[7]] = sampled[tensors[8]]

    return ForwardBatch(
        token_ids=tensors[0],
        positions=tensors[1],
        slot_mapping=tensors[2],
        block_table=tensors[3],
        cu_seqlens_q=tensors[4],
        seq_lens=tensors[5],
        max_seqlen_q=int(num_new.max(initial=0)),
        logit_rows=None if all_sample else tensors[6],
        logit_seqs=None if all_sample or explains else tensors[9],
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
