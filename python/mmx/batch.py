"""What the scheduler hands to the runner for one step, and what the runner hands back.

Plain ordered data: every rank gets the same ``ScheduledBatch`` and must do the same work. No torch.
"""

from __future__ import annotations

import msgspec

from mmx.config import SamplingParams
from mmx.protocol import TokenLogprobs

PENDING = -1
"""Stands in ``ScheduledSeq.token_ids`` for the token that the step before this one samples for the same
request: planned before it is known, filled in by the runner."""


class ScheduledSeq(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence's part of a step.

    ``token_ids`` are the tokens to compute, at positions ``start .. start + len(token_ids) - 1``; that of a
    decode may be ``PENDING``. ``block_ids`` is the whole block table, covering every position up to the last
    computed one. ``samples``: a token is sampled after the last of them (not after a prompt chunk that is not
    the last). ``num_output_tokens`` counts tokens generated before this step (it numbers the random draw).
    ``history`` (prompt then output ids) is given only where ``params`` has a penalty; ``banned_token_ids``
    are ids that may not be sampled in this step (end tokens below ``min_tokens``). ``masked``: a token mask
    may bound what is sampled, and comes with the launch, or as ``mask`` (int32 words, bit i of word j allows
    id 32 j + i) where that is another process.
    ``prompt_targets``: prompt tokens whose log-probabilities are wanted, each behind the token of the same
    place in ``token_ids``.
    """

    request_id: str
    token_ids: list[int]
    start: int
    block_ids: list[int]
    samples: bool
    params: SamplingParams
    seed: int
    num_output_tokens: int
    num_prompt_tokens: int
    history: list[int] | None = None
    banned_token_ids: list[int] = []
    masked: bool = False
    mask: bytes | None = None
    prompt_targets: list[int] = []


class ScheduledBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The sequences of one step in a fixed order: decodes (one token, sampling) before prompt chunks.

    With data-parallel groups, each with pages of its own, the sequences of the groups follow one another and
    ``group_sizes`` counts them; empty for one group.
    """

    step: int
    seqs: list[ScheduledSeq]
    group_sizes: list[int] = []

    @property
    def num_tokens(self) -> int:
        return sum(len(seq.token_ids) for seq in self.seqs)


class SampledToken(msgspec.Struct, frozen=True, kw_only=True):
    """Result for one sampling sequence of the batch; ``error`` replaces the token when its logits were
    not finite, or ``forbidden``: the request's constraints left no token. ``prompt_logprobs`` are those of
    all ``prompt_targets`` up to this step."""

    request_id: str
    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    forbidden: bool = False
    prompt_logprobs: list[TokenLogprobs] | None = None
