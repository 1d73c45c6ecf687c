"""Ranks that share a vocabulary sample what one with all of it does, drawn in a graph before or not."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from mmx.batch import SampledToken, ScheduledSeq
from mmx.config import SamplingParams
from mmx.runner.sampler import NOT_FINITE, draw_largest, sample_tokens

SIZE, VOCAB = 2, 64
GREEDY = SamplingParams(temperature=0.0)


class Group:
    """A rank among threads."""

    size = SIZE

    def __init__(self, rank: int, parts: list[Any], meet: threading.Barrier) -> None:
        self.rank, self._parts, self._meet = rank, parts, meet

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        self._parts[self.rank] = x
        self._meet.wait(10)
        whole = torch.cat(self._parts)
        self._meet.wait(10)
        return whole


def seq(params: SamplingParams, **more: Any) -> ScheduledSeq:
    fields = {"seed": 5, "num_output_tokens": 3, "num_prompt_tokens": 2} | more
    return ScheduledSeq(
        request_id="r", token_ids=[0], start=4, block_ids=[0], samples=True, params=params, **fields
    )


def on_ranks(logits: torch.Tensor, seqs: list[ScheduledSeq], drawn: bool) -> list[list[SampledToken]]:
    parts, meet = [None] * SIZE, threading.Barrier(SIZE)

    def one(rank: int) -> list[SampledToken]:
        group, part = Group(rank, parts, meet), logits.chunk(SIZE, 1)[rank].contiguous()
        ids = torch.empty(len(seqs), dtype=torch.int64)
        if drawn:
            draw_largest(part, group, ids)  # type: ignore[arg-type]
        out = ids if drawn else None
        return sample_tokens(part, seqs, group, out=out, drawn=drawn).result()  # type: ignore[arg-type]

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(one, range(SIZE)))


EXPLAINED = SamplingParams(temperature=0.0, logprobs=3)
BIASED = SamplingParams(temperature=0.0, logit_bias={7: 100.0})
DRAWN = SamplingParams(temperature=0.9, top_k=20, top_p=0.9)
MASK = np.array([2**5, 0], np.int32).tobytes()


BATCHES = {
    "greedy": [seq(GREEDY), seq(GREEDY)],
    "logprobs": [seq(GREEDY), seq(EXPLAINED)],
    "bias-and-ban": [seq(BIASED), seq(GREEDY), seq(EXPLAINED, banned_token_ids=[40])],
    "mask": [seq(GREEDY, masked=True, mask=MASK), seq(GREEDY)],
    "mixed": [seq(DRAWN), seq(GREEDY), seq(DRAWN, seed=9), seq(EXPLAINED)],
}
# What a graph draws counts where all rows are greedy.
CASES = [(name, drawn) for name in BATCHES for drawn in (False, True) if not drawn or name != "mixed"]


@pytest.mark.parametrize(("batch", "drawn"), CASES)
def test_ranks_sample_as_one(batch: str, drawn: bool) -> None:
    seqs = BATCHES[batch]
    logits = torch.randn(len(seqs), VOCAB, generator=torch.Generator().manual_seed(1))
    logits[:, 40] = 9.0  # the best token, in the second rank's part
    expected = sample_tokens(logits.clone(), seqs).result()
    assert on_ranks(logits, seqs, drawn) == [expected] * SIZE


@pytest.mark.parametrize("drawn", [False, True])
def test_of_equals_the_first_is_taken_and_broken_rows_are_told(drawn: bool) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, 33], logits[2, 50] = 1.0, math.nan
    for found in on_ranks(logits, [seq(GREEDY)] * 3, drawn):
        assert [token.token_id for token in found] == [0, 33, -1]
        assert [token.error for token in found] == [None, None, NOT_FINITE]
