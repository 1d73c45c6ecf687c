"""Decode steps as device graphs, sampling included: one per padded batch size, at fixed addresses.

What differs between steps lies in ``state``, which one copy from the host fills: for each row which token it
computes (of the host, or the one that the step before left in ``ids``), where, and how it samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from mmx.backend import Recorder
from mmx.batch import PENDING, ScheduledSeq
from mmx.layers import ForwardBatch, LayerCache
from mmx.runner.parts import Part
from mmx.runner.sampler import CONTROL_DTYPES, Controls
from mmx.runner.upload import Mailbox, torch_dtype, upload

# Fields of ``state`` after the ids, one entry of 8 bytes per row; narrower types fill the front of a field.
SOURCE, TOKEN, POSITION, SLOT, COLUMN, PAGE, SEQ_LEN, CONTROLS = range(8)
NUM_FIELDS = CONTROLS + len(Controls._fields)
# (inputs, how each row is drawn) -> logits [num_rows, vocab] f32
Step = Callable[[ForwardBatch, Controls], torch.Tensor]


def state_size(max_num_seqs: int) -> int:
    """Entries of the int64 tensor that holds ``max_num_seqs`` ids and the fields of as many rows."""
    return (1 + NUM_FIELDS) * max_num_seqs


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Padded batch sizes up to ``max_num_seqs``, largest first: 1, 2, 4, steps of 8 to 64 and of 32 beyond,
    so that little of a large batch is padding and few graphs are kept."""
    sizes = {1, 2, 4, *range(8, 65, 8), *range(96, max_num_seqs + 32, 32)}
    return sorted({min(size, max_num_seqs) for size in sizes}, reverse=True)


class DecodeGraphs:
    """Captured steps for batches in which every sequence computes and samples one token.

    A padding row is a sequence of length 1 in page 0 that stores nothing: what it samples is not read.
    """

    def __init__(
        self,
        step: Step,
        *,
        state: torch.Tensor,
        mailbox: Mailbox,
        block_size: int,
        max_blocks: int,
        max_num_seqs: int,
        cos_sin: torch.Tensor,
        caches: list[LayerCache],
        num_spread: int = 1,
    ) -> None:
        """``state``: int64 [state_size(max_num_seqs)]; ``step`` computes, and may sample into its ids.
        ``num_spread`` ranks exchange tokens; all of them replay graphs of one size."""
        self._step = step
        self._num_spread = num_spread
        self._state, self._mailbox = state, mailbox
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._sizes = graph_sizes(max_num_seqs)
        device = state.device
        self._rows = torch.arange(max_num_seqs, device=device)
        self._token_ids = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._cu_seqlens_q = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int32, device=device)
        self._tables_hold: list[list[int]] = [[] for _ in range(max_num_seqs)]  # pages of each row
        self._cos_sin, self._caches = cos_sin, caches
        self._graphs: dict[int, tuple[Callable[[], None], torch.Tensor]] = {}

    def capture(self, progress: Callable[[float], None]) -> None:
        """Record all sizes, the largest first so that the others fit into its memory."""
        recorder = Recorder(self._state.device)
        for done, size in enumerate(self._sizes):
            progress(done / len(self._sizes))
            self._fill([], size, {})
            # Why: kernels and libraries set themselves up on first use, which a capture does not allow.
            self._compute(size)
            self._graphs[size] = recorder.record(partial(self._compute, size))
        progress(1.0)

    def run(self, part: Part, sampled_rows: Mapping[str, int]) -> torch.Tensor | None:
        """Logits [num_seqs, vocab] f32, valid until the next step; None where a prompt chunk takes part.
        ``sampled_rows``: the places in ``ids`` of what the step before sampled."""
        seqs, rows = part.batch.seqs, part.decode_rows
        if rows is None or rows > self._sizes[0]:
            return None
        size = next(size for size in reversed(self._sizes) if size >= rows)
        self._fill(seqs, size, sampled_rows)
        return self._replay(size)[: len(seqs)]

    def _replay(self, size: int) -> torch.Tensor:
        replay, logits = self._graphs[size]
        replay()
        return logits

    def _compute(self, size: int) -> torch.Tensor:
        """What is recorded."""
        token_ids = self._token_ids[:size]
        torch.index_select(self._state, 0, self._field(size, SOURCE), out=token_ids)
        # A sequence gets at most one page per step: the graph itself enters it.
        where = (self._rows[:size], self._field(size, COLUMN))
        self._tables.index_put_(where, self._field(size, PAGE, torch.int32))
        inputs = ForwardBatch(
            token_ids=token_ids,
            positions=self._field(size, POSITION),
            slot_mapping=self._field(size, SLOT),
            block_table=self._tables[:size],
            cu_seqlens_q=self._cu_seqlens_q[: size + 1],
            seq_lens=self._field(size, SEQ_LEN, torch.int32),
            max_seqlen_q=1,
            logit_rows=None,
            cos_sin=self._cos_sin,
            caches=self._caches,
            token_counts=(size,) * self._num_spread,
        )
        controls = [
            self._field(size, CONTROLS + i, torch_dtype(dtype)) for i, dtype in enumerate(CONTROL_DTYPES)
        ]
        return self._step(inputs, Controls(*controls))

    def _field(self, size: int, field: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        first = self._max_num_seqs + field * size
        return self._state[first : first + size].view(dtype)[:size]

    def _fill(self, seqs: list[ScheduledSeq], size: int, sampled_rows: Mapping[str, int]) -> None:
        """Rows of the step, padding after them, to the device."""
        used, block_size = len(seqs), self._block_size
        fields = np.zeros((NUM_FIELDS, size), np.int64)
        fields[SOURCE] = self._max_num_seqs + TOKEN * size + np.arange(size)
        fields[SLOT] = -1
        seq_lens, pages = fields[SEQ_LEN].view(np.int32), fields[PAGE].view(np.int32)
        seq_lens[:size] = 1
        if seqs:
            starts = np.array([seq.start for seq in seqs], np.int64)
            last_pages = np.array([seq.block_ids[-1] for seq in seqs], np.int64)
            for row, seq in enumerate(seqs):
                if seq.token_ids[0] == PENDING:
                    fields[SOURCE, row] = sampled_rows[seq.request_id]
                else:
                    fields[TOKEN, row] = seq.token_ids[0]
            fields[POSITION, :used] = starts
            fields[SLOT, :used] = last_pages * block_size + starts % block_size
            fields[COLUMN, :used] = starts // block_size
            seq_lens[:used] = starts + 1
            pages[:used] = last_pages
            for field, values in zip(fields[CONTROLS:], Controls.of(seqs), strict=True):
                field.view(values.dtype)[:used] = values
        first = self._max_num_seqs
        self._mailbox.send(fields.reshape(-1), self._state[first : first + NUM_FIELDS * size])
        self._fill_tables(seqs, size)

    def _fill_tables(self, seqs: list[ScheduledSeq], size: int) -> None:
        """Rewrite the rows of the page tables that differ by more than the newest page."""
        hold = self._tables_hold
        stale = []
        for row, seq in enumerate(seqs):
            pages, before = seq.block_ids, hold[row]
            if pages != before and pages[:-1] != before:
                stale.append(row)
            hold[row] = pages
        for row in range(len(seqs), size):
            hold[row] = []
        if not stale:
            return
        tables = np.zeros((len(stale), max(len(hold[row]) for row in stale)), np.int32)
        for table, row in zip(tables, stale, strict=True):
            table[: len(hold[row])] = hold[row]
        there, rows = upload([tables, np.array(stale, np.int64)], self._tables.device)
        self._tables[:, : tables.shape[1]].index_copy_(0, rows, there)
