"""One rank's part of a step: its group's sequences, and of each its tokens. Every rank derives the parts of
all.

Context ranks cut each sequence's new tokens into equal runs. Neighbours of a sequence take the next run, so
that single tokens and ragged ends are spread over the ranks.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import msgspec

from mmx.batch import ScheduledBatch, ScheduledSeq
from mmx.layout import Layout


class Part(NamedTuple):
    """``batch`` is what this rank computes. ``token_counts`` are the tokens of the spread group's ranks;
    ``stored`` are the batches of the context group's ranks, whose K and V this rank stores as well.
    ``decode_rows``: the most sequences that a rank of the spread group has, where all of them only decode."""

    batch: ScheduledBatch
    token_counts: tuple[int, ...]
    stored: tuple[ScheduledBatch, ...]
    decode_rows: int | None

    @property
    def idle(self) -> bool:
        """Nobody among the ranks that this one works with has anything to do."""
        return not any(self.token_counts)


def part_of(batch: ScheduledBatch, layout: Layout, rank: int) -> Part:
    """What ``rank`` does in a step."""
    groups = _groups(batch, layout.dp)
    d, p, _ = layout.place(rank)
    stored = tuple(_context_part(groups[d], layout.pcp, i) for i in range(layout.pcp))
    spread = [layout.place(other) for other in layout.spread_group(rank)]
    parts = [_context_part(groups[i], layout.pcp, j) for i, j, _ in spread]
    decodes = all(len(seq.token_ids) == 1 and seq.samples for part in parts for seq in part.seqs)
    rows = max(len(part.seqs) for part in parts) if decodes else None
    return Part(stored[p], tuple(part.num_tokens for part in parts), stored, rows)


def _groups(batch: ScheduledBatch, dp: int) -> list[ScheduledBatch]:
    if dp == 1:
        return [batch]
    groups, first = [], 0
    for size in batch.group_sizes:
        groups.append(ScheduledBatch(step=batch.step, seqs=batch.seqs[first : first + size]))
        first += size
    return groups


def _context_part(batch: ScheduledBatch, pcp: int, p: int) -> ScheduledBatch:
    if pcp == 1:
        return batch
    runs = [_run(seq, pcp, p, (p - i) % pcp) for i, seq in enumerate(batch.seqs)]
    return ScheduledBatch(step=batch.step, seqs=[seq for seq in runs if seq.token_ids])


def _run(seq: ScheduledSeq, pcp: int, p: int, index: int) -> ScheduledSeq:
    num_tokens = len(seq.token_ids)
    begin, end = num_tokens * index // pcp, num_tokens * (index + 1) // pcp
    if seq.params.prompt_logprobs is not None and seq.start < seq.num_prompt_tokens:
        # Why: the log-probabilities of a prompt, over all its steps, must come together on one rank.
        begin, end = 0, num_tokens if zlib.crc32(seq.request_id.encode()) % pcp == p else 0
    return msgspec.structs.replace(
        seq,
        token_ids=seq.token_ids[begin:end],
        start=seq.start + begin,
        samples=seq.samples and end == num_tokens,
    )
