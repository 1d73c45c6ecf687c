"""``mmx.LLM`` over ranks of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mmx import LLM, SamplingParams
from mmx.config import ParallelConfig
from mmx.errors import ConfigError
from models.harness import random_ids
from models.tiny import write_tiny_checkpoint
from models.w8a8 import write_w8a8
from parallel.processes import ranks_of, wait_gone

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def test_one_after_the_other(tmp_path: Path) -> None:
    folder = str(write_tiny_checkpoint(tmp_path, "m2"))
    prompts = [random_ids(length, length) for length in (5, 20)]
    settings = {"device": "cpu", "kv_cache_bytes": 1 << 24, "skip_tokenizer_init": True}
    alone = [out.token_ids for out in LLM(folder, **settings).generate(prompts, GREEDY)]
    for parallel in (ParallelConfig(tensor_parallel_size=2), ParallelConfig(data_parallel_size=2)):
        llm = LLM(folder, parallel=parallel, **settings)
        ranks = ranks_of_this_process()
        assert len(ranks) == 1
        assert [out.token_ids for out in llm.generate(prompts, GREEDY)] == alone
        for wrong in (-1, 2**40):
            with pytest.raises(ValueError, match=f"prompt token ids must be in .*, got {wrong}"):
                llm.generate([[wrong] * 300], GREEDY)
        llm.close()
        llm.close()
        wait_gone(ranks)
    with pytest.raises(ConfigError, match="tensor_parallel_size 3 must divide num_attention_heads 4"):
        LLM(folder, tensor_parallel_size=3, **settings)
    assert ranks_of_this_process() == []


def test_log_probabilities_of_prompts_that_context_ranks_share(tmp_path: Path) -> None:
    folder = str(write_tiny_checkpoint(tmp_path, "m3"))
    prompts = [random_ids(length, length) for length in (1, 2, 30, 70, 17, 40)]
    settings = {"device": "cpu", "kv_cache_bytes": 1 << 22, "skip_tokenizer_init": True, "dtype": "float32"}
    asked = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, prompt_logprobs=1)
    params = [asked, asked, asked, asked, GREEDY, asked]
    alone = LLM(folder, **settings).generate(prompts, params)
    parallel = ParallelConfig(prefill_context_parallel_size=2)
    llm = LLM(folder, parallel=parallel, max_num_batched_tokens=32, **settings)
    for one, other in zip(llm.generate(prompts, params), alone, strict=True):
        assert one.token_ids == other.token_ids
        found, expected = one.prompt_logprobs or [], other.prompt_logprobs or []
        assert [info.top_ids for info in found] == [info.top_ids for info in expected]
        assert [info.logprob for info in found] == pytest.approx(
            [info.logprob for info in expected], abs=1e-4
        )
    llm.close()


def test_checkpoints_that_are_widened(tmp_path: Path) -> None:
    fp8 = write_tiny_checkpoint(tmp_path / "fp8", "m2", torch.bfloat16, variant="fp8")
    base = write_tiny_checkpoint(tmp_path / "base", "m2")
    int8 = write_w8a8(base, tmp_path / "int8", ("_proj",))
    prompts = [random_ids(length, length) for length in (5, 20)]
    settings = {"device": "cpu", "kv_cache_bytes": 1 << 24, "skip_tokenizer_init": True, "dtype": "float32"}
    for folder, more in ((fp8, {"dequantize_weights": True}), (int8, {})):
        tokens = []
        for num_ranks in (1, 2):
            llm = LLM(str(folder), tensor_parallel_size=num_ranks, **settings, **more)
            tokens.append([out.token_ids for out in llm.generate(prompts, GREEDY)])
            llm.close()
        assert tokens[0] == tokens[1]


def ranks_of_this_process() -> list[int]:
    return ranks_of(os.getpid())
