"""Runs tiny models below the scheduler: hand-made batches, logits of every token, greedy tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from mmx.batch import ScheduledBatch, ScheduledSeq
from mmx.config import EngineConfig, SamplingParams
from mmx.runner import ModelRunner, build_runner
from mmx.runner.inputs import make_inputs

GREEDY = SamplingParams(temperature=0.0)
POOL_BYTES = 1 << 25


def tiny_runner(folder: Path, **settings: object) -> ModelRunner:
    """The runner of a checkpoint on the CPU with a small pool."""
    settings = {"device": "cpu", "kv_cache_bytes": POOL_BYTES} | settings
    return build_runner(EngineConfig(model=str(folder), **settings), lambda phase, done: None)


class PagedSequence:
    """A sequence with its own pages, taken out of order from the pool."""

    def __init__(self, runner: ModelRunner, number: int, max_len: int) -> None:
        size = runner.block_size
        count = -(-max_len // size)
        first = number * count
        assert first + count <= runner.num_blocks
        self.name = str(number)
        self.size = size
        self.pages = list(range(first, first + count))[::-1]
        self.ids: list[int] = []

    def step(
        self, ids: Sequence[int], samples: bool = True, params: SamplingParams = GREEDY, **rest: object
    ) -> ScheduledSeq:
        """The next ``ids`` of the sequence as a part of a batch."""
        start = len(self.ids)
        self.ids += ids
        fields = {"seed": 0, "num_output_tokens": 0, "num_prompt_tokens": len(self.ids)} | rest
        return ScheduledSeq(
            request_id=self.name,
            token_ids=list(ids),
            start=start,
            block_ids=self.pages[: -(-len(self.ids) // self.size)],
            samples=samples,
            params=params,
            **fields,
        )


@torch.inference_mode()
def all_logits(runner: ModelRunner, ids: Sequence[int], chunk: int = 1 << 30) -> torch.Tensor:
    """Logits after every token of ``ids``, computed ``chunk`` tokens at a time: [num_tokens, vocab]."""
    sequence, parts = PagedSequence(runner, 0, len(ids)), []
    for begin in range(0, len(ids), chunk):
        batch = ScheduledBatch(step=begin, seqs=[sequence.step(ids[begin : begin + chunk])])
        inputs = make_inputs(
            batch,
            block_size=runner.block_size,
            device=runner._device,
            cos_sin=runner._cos_sin,
            caches=runner._caches,
        )
        parts.append(runner.model(dataclasses.replace(inputs, logit_rows=None)))
    return torch.cat(parts)


def greedy(
    runner: ModelRunner, prompts: Sequence[Sequence[int]], num_tokens: int, chunk: int = 1 << 30
) -> list[list[int]]:
    """``num_tokens`` greedy tokens after each prompt: prompts in chunks, then all sequences in one batch."""
    sequences = [PagedSequence(runner, i, max(map(len, prompts)) + num_tokens) for i in range(len(prompts))]
    outputs: list[list[int]] = []
    for sequence, prompt in zip(sequences, prompts, strict=True):
        for begin in range(0, len(prompt), chunk):
            last = begin + chunk >= len(prompt)
            seq = sequence.step(prompt[begin : begin + chunk], samples=last)
            sampled = runner.execute(ScheduledBatch(step=0, seqs=[seq]))
        outputs.append([sampled[0].token_id])
    for step in range(1, num_tokens):
        seqs = [sequence.step(output[-1:]) for sequence, output in zip(sequences, outputs, strict=True)]
        sampled = runner.execute(ScheduledBatch(step=step, seqs=seqs))
        for output, token in zip(outputs, sampled, strict=True):
            output.append(token.token_id)
    return outputs


def random_ids(count: int, seed: int, vocab: int = 256) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
