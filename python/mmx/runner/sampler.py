"""Logits to sampled tokens, with log-probabilities where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch

from mmx import ops
from mmx.batch import SampledToken, ScheduledSeq
from mmx.distributed import Group
from mmx.protocol import TokenLogprobs
from mmx.runner.upload import fetch, upload

NOT_FINITE = "the model's logits are not finite"

MaskSource = Callable[[Sequence[ScheduledSeq]], Sequence[np.ndarray | None]]
"""Token masks of these sequences, as int32 words (``ScheduledSeq.mask``); None allows every token. It may
wait for their computation, which goes on while the device computes the logits."""


Fetch = Callable[[torch.Tensor], torch.Tensor]
"""Sampled ids to the host, as ``upload.fetch``."""


def attached_masks(seqs: Sequence[ScheduledSeq]) -> list[np.ndarray | None]:
    """The masks that came with the batch."""
    return [None if seq.mask is None else np.frombuffer(seq.mask, np.int32) for seq in seqs]


class Controls(NamedTuple):
    """How each row is drawn, as ``ops.sample`` takes it: [num_rows] each, of CONTROL_DTYPES."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    steps: torch.Tensor

    @staticmethod
    def of(seqs: Sequence[ScheduledSeq]) -> list[np.ndarray]:
        """The host arrays, of CONTROL_DTYPES."""
        columns: list[list[float]] = [
            [seq.params.temperature for seq in seqs],
            [seq.params.top_k for seq in seqs],
            [seq.params.top_p for seq in seqs],
            [seq.params.min_p for seq in seqs],
            [seq.seed for seq in seqs],
            [seq.num_output_tokens for seq in seqs],
        ]
        return [np.array(column, dtype) for column, dtype in zip(columns, CONTROL_DTYPES, strict=True)]


CONTROL_DTYPES = (np.float32, np.int32, np.float32, np.float32, np.int64, np.int64)


class ExplainedPrompt:
    """Log-probabilities of a prompt on their way to the host: by first position, what ``ops.logprobs``
    says."""

    def __init__(self) -> None:
        self.parts: dict[int, list[torch.Tensor]] = {}

    def logprobs(self) -> list[TokenLogprobs]:
        """In the order of the prompt; the copies must be complete."""
        found = []
        for _, columns in sorted(self.parts.items()):
            for logprob, rank, ids, values in zip(*(column.tolist() for column in columns), strict=True):
                found.append(TokenLogprobs(logprob, rank, ids, values))
        return found


class Sampled:
    """Tokens of a step on their way to the host."""

    def __init__(
        self,
        seqs: Sequence[ScheduledSeq],
        token_ids: torch.Tensor,
        wanted: Sequence[int] = (),
        logprobs: Sequence[torch.Tensor] = (),
        fetch_ids: Fetch = fetch,
    ) -> None:
        """``token_ids`` [num_rows] int64; ``logprobs``: what ``ops.logprobs`` says of the ``wanted`` rows."""
        self.faults: Callable[[], AbstractContextManager[None]] = nullcontext
        self.token_ids = token_ids
        self._seqs = seqs
        self._wanted = wanted
        self.prompts: dict[str, ExplainedPrompt] = {}
        self._host = [fetch_ids(token_ids), *map(fetch, logprobs)]
        self._done: torch.Event | None = None
        if token_ids.device.type != "cpu":
            self._done = torch.Event(token_ids.device.type)
            self._done.record()

    def result(self) -> list[SampledToken]:
        """Wait for the step; one result per row."""
        if self._done is not None:
            with self.faults():
                self._done.synchronize()
        token_ids, *columns = (tensor.tolist() for tensor in self._host)
        logprobs: dict[int, TokenLogprobs] = {}
        if columns:
            for row, logprob, rank, top_ids, top_logprobs in zip(self._wanted, *columns, strict=True):
                num_top = self._seqs[row].params.logprobs or 0
                logprobs[row] = TokenLogprobs(logprob, rank, top_ids[:num_top], top_logprobs[:num_top])
        results = []
        for row, (seq, token_id) in enumerate(zip(self._seqs, token_ids, strict=True)):
            error = None if token_id >= 0 else NOT_FINITE
            prompt = self.prompts.get(seq.request_id)
            result = SampledToken(
                request_id=seq.request_id,
                token_id=token_id,
                logprobs=None if error else logprobs.get(row),
                error=error,
                prompt_logprobs=None if prompt is None else prompt.logprobs(),
            )
            results.append(result)
        return results


def sample_tokens(
    logits: torch.Tensor,
    seqs: Sequence[ScheduledSeq],
    group: Group | None = None,
    *,
    out: torch.Tensor | None = None,
    drawn: bool = False,
    masks: MaskSource = attached_masks,
    fetch_ids: Fetch = fetch,
) -> Sampled:
    """One token per row, the same on every rank of ``group``, whose ranks hold a part of the vocabulary
    each.

    Log-probabilities are those of the model, before penalties, biases, masks and temperature.

    Args:
        logits: [num_rows, vocab of this rank] f32; changed where a row has penalties, biases or a mask.
        seqs: the sequence of each row.
        out: [num_rows] int64, gets the ids.
        drawn: ``out`` has the ids already, for logits without penalties, biases and masks.
        masks: asked once all other work on the logits is launched.
        fetch_ids: brings the ids to the host.
    """
    wanted = [row for row, seq in enumerate(seqs) if seq.params.logprobs is not None]
    adjusted = any(_adjusts(seq) for seq in seqs)
    if out is None:
        out = torch.empty(len(seqs), dtype=torch.int64, device=logits.device)
    if group is not None and group.size > 1:
        if not wanted and not adjusted and all(seq.params.greedy for seq in seqs):
            if not drawn:
                draw_largest(logits, group, out)
            return Sampled(seqs, out, fetch_ids=fetch_ids)
        logits = whole_rows(logits, group)
    model_logits = logits
    if wanted and (adjusted or len(wanted) < len(seqs)):
        (rows,) = upload([np.array(wanted, np.int64)], logits.device)
        model_logits = logits[rows]
    if adjusted:
        _adjust(logits, seqs)
        if any(seq.masked for seq in seqs):
            _mask(logits, masks(seqs))
    if adjusted or not drawn:
        ops.sample(logits, *upload(Controls.of(seqs), logits.device), out=out)
    if not wanted:
        return Sampled(seqs, out, fetch_ids=fetch_ids)
    num_top = min(max(seqs[row].params.logprobs or 0 for row in wanted), logits.shape[1])
    (rows,) = upload([np.array(wanted, np.int64)], logits.device)
    # Why the clamp: rows without a token (-1) are reported as an error, any id will do for them.
    columns = ops.logprobs(model_logits, out[rows].clamp(min=0), num_top)
    return Sampled(seqs, out, wanted, columns, fetch_ids)


def draw_largest(logits: torch.Tensor, group: Group, out: torch.Tensor) -> None:
    """Greedy ids over all parts of the vocabulary into ``out`` (ties: lowest id), -1 where the largest logit
    is not finite. A dozen small kernels, all of which a graph can hold."""
    values, ids = logits.max(1)
    # Why f32 ids: a vocabulary has far fewer than 2^24 entries, and one call carries both.
    ids = ids + group.rank * logits.shape[1]
    best = group.all_gather(torch.stack([values, ids.float()], 1)).view(group.size, -1, 2)
    value, place = best[..., 0].max(0)
    chosen = best[..., 1].gather(0, place.unsqueeze(0)).squeeze(0)
    out.copy_(chosen.where(value.isfinite(), -1))


def whole_rows(logits: torch.Tensor, group: Group) -> torch.Tensor:
    """The logits of the whole vocabulary: [num_rows, vocab]."""
    parts = group.all_gather(logits.contiguous()).view(group.size, *logits.shape)
    return parts.transpose(0, 1).reshape(logits.shape[0], -1)


def _adjusts(seq: ScheduledSeq) -> bool:
    return bool(seq.params.logit_bias or seq.banned_token_ids or seq.history or seq.masked)


def _mask(logits: torch.Tensor, masks: Sequence[np.ndarray | None]) -> None:
    """Forbid in place what the masks do not allow."""
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not rows:
        return
    words, where = upload(
        [np.stack([mask for mask in masks if mask is not None]), np.array(rows, np.int64)], logits.device
    )
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (words.unsqueeze(-1) >> bits & 1).flatten(1)[:, : logits.shape[1]]
    logits[where] = logits[where].masked_fill_(allowed == 0, -math.inf)


def _adjust(logits: torch.Tensor, seqs: Sequence[ScheduledSeq]) -> None:
    biases = [seq.params.logit_bias | dict.fromkeys(seq.banned_token_ids, -math.inf) for seq in seqs]
    histories = [seq.history or [] for seq in seqs]
    arrays = [
        np.array(np.concatenate(histories), np.int32),
        np.array(np.cumsum([0, *map(len, histories)]), np.int32),
        np.array([seq.num_prompt_tokens for seq in seqs], np.int32),
        np.array([seq.params.repetition_penalty for seq in seqs], np.float32),
        np.array([seq.params.frequency_penalty for seq in seqs], np.float32),
        np.array([seq.params.presence_penalty for seq in seqs], np.float32),
        np.array([i for bias in biases for i in bias], np.int32),
        np.array([value for bias in biases for value in bias.values()], np.float32),
        np.array(np.cumsum([0, *map(len, biases)]), np.int32),
    ]
    ops.adjust_logits(logits, *upload(arrays, logits.device))
