"""Logits to sampled tokens, with log-probabilities where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike

from mmx import ops
from mmx.batch import SampledToken, ScheduledSeq
from mmx.distributed import Group
from mmx.protocol import TokenLogprobs

NOT_FINITE = "the model's logits are not finite"


def sample_tokens(
    logits: torch.Tensor, seqs: Sequence[ScheduledSeq], group: Group | None = None
) -> list[SampledToken]:
    """One result per row, the same on every rank of ``group``, whose ranks hold a part of the vocabulary
    each.

    Log-probabilities are those of the model, before penalties, biases and temperature.

    Args:
        logits: [num_rows, vocab of this rank] f32; changed where a row has penalties or biases.
        seqs: the sequence of each row.
    """
    wanted = [row for row, seq in enumerate(seqs) if seq.params.logprobs is not None]
    adjusted = any(_adjusts(seq) for seq in seqs)
    if group is not None and group.size > 1:
        if not wanted and not adjusted and all(seq.params.greedy for seq in seqs):
            return _results(seqs, _largest(logits, group).tolist(), {})
        logits = _whole_rows(logits, group)
    model_logits = logits
    if wanted and (adjusted or len(wanted) < len(seqs)):
        model_logits = logits[wanted]
    if adjusted:
        _adjust(logits, seqs)
    token_ids = _draw(logits, seqs)
    logprobs = _logprobs(model_logits, token_ids, wanted, seqs) if wanted else {}
    return _results(seqs, token_ids.tolist(), logprobs)


def _largest(logits: torch.Tensor, group: Group) -> torch.Tensor:
    """Greedy ids over all parts of the vocabulary (ties: lowest id), -1 where the largest logit is not
    finite."""
    values, ids = logits.max(1)
    # Why f32 ids: a vocabulary has far fewer than 2^24 entries, and one call carries both.
    ids = ids + group.rank * logits.shape[1]
    best = group.all_gather(torch.stack([values, ids.float()], 1)).view(group.size, -1, 2)
    value, place = best[..., 0].max(0)
    chosen = best[..., 1].gather(0, place.unsqueeze(0)).squeeze(0).long()
    return chosen.where(value.isfinite(), -1)


def _whole_rows(logits: torch.Tensor, group: Group) -> torch.Tensor:
    """The logits of the whole vocabulary: [num_rows, vocab]."""
    parts = group.all_gather(logits.contiguous()).view(group.size, *logits.shape)
    return parts.transpose(0, 1).reshape(logits.shape[0], -1)


def _results(
    seqs: Sequence[ScheduledSeq], token_ids: list[int], logprobs: dict[int, TokenLogprobs]
) -> list[SampledToken]:
    results = []
    for row, (seq, token_id) in enumerate(zip(seqs, token_ids, strict=True)):
        error = None if token_id >= 0 else NOT_FINITE
        result = SampledToken(
            request_id=seq.request_id,
            token_id=token_id,
            logprobs=None if error else logprobs.get(row),
            error=error,
        )
        results.append(result)
    return results


def _adjusts(seq: ScheduledSeq) -> bool:
    return bool(seq.params.logit_bias or seq.banned_token_ids or seq.history)


def _adjust(logits: torch.Tensor, seqs: Sequence[ScheduledSeq]) -> None:
    biases = [seq.params.logit_bias | dict.fromkeys(seq.banned_token_ids, -math.inf) for seq in seqs]
    histories = [seq.history or [] for seq in seqs]
    put = _placer(logits.device)
    ops.adjust_logits(
        logits,
        put(np.concatenate(histories), np.int32),
        put(np.cumsum([0, *map(len, histories)]), np.int32),
        put([seq.num_prompt_tokens for seq in seqs], np.int32),
        put([seq.params.repetition_penalty for seq in seqs], np.float32),
        put([seq.params.frequency_penalty for seq in seqs], np.float32),
        put([seq.params.presence_penalty for seq in seqs], np.float32),
        put([i for bias in biases for i in bias], np.int32),
        put([value for bias in biases for value in bias.values()], np.float32),
        put(np.cumsum([0, *map(len, biases)]), np.int32),
    )


def _draw(logits: torch.Tensor, seqs: Sequence[ScheduledSeq]) -> torch.Tensor:
    put = _placer(logits.device)
    return ops.sample(
        logits,
        put([seq.params.temperature for seq in seqs], np.float32),
        put([seq.params.top_k for seq in seqs], np.int32),
        put([seq.params.top_p for seq in seqs], np.float32),
        put([seq.params.min_p for seq in seqs], np.float32),
        put([seq.seed for seq in seqs], np.int64),
        put([seq.num_output_tokens for seq in seqs], np.int64),
    )


def _logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, wanted: list[int], seqs: Sequence[ScheduledSeq]
) -> dict[int, TokenLogprobs]:
    """Row -> log-probabilities for the ``wanted`` rows, which ``logits`` [len(wanted), vocab] holds."""
    num_tops = [seqs[row].params.logprobs or 0 for row in wanted]
    # Why the clamp: rows without a token (-1) are reported as an error, any id will do for them.
    chosen = token_ids[wanted].clamp(min=0)
    columns = [part.tolist() for part in ops.logprobs(logits, chosen, min(max(num_tops), logits.shape[1]))]
    return {
        row: TokenLogprobs(logprob, rank, top_ids[:num_top], top_logprobs[:num_top])
        for row, num_top, logprob, rank, top_ids, top_logprobs in zip(wanted, num_tops, *columns, strict=True)
    }


def _placer(device: torch.device) -> Callable[[ArrayLike, DTypeLike], torch.Tensor]:
    def put(values: ArrayLike, dtype: DTypeLike) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype)).to(device)

    return put
