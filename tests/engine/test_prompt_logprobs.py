"""Log-probabilities of prompts do not depend on chunks, cached pages or batch mates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmx.batch import ScheduledSeq
from mmx.config import SamplingParams
from mmx.distributed import CallLog, Group
from mmx.llm import LLM
from mmx.runner import ModelRunner
from mmx.runner.prompt_logprobs import PromptLogprobs
from models.tiny import write_tiny_checkpoint

PROMPT = [(7 * i * i + 3) % 250 for i in range(70)]


@pytest.fixture(scope="module", params=["m2", "m3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), request.param, eos_token_id=255)


def llm(folder: Path, max_num_batched_tokens: int) -> LLM:
    return LLM(
        str(folder), device="cpu", dtype="float32", skip_tokenizer_init=True, max_model_len=256,
        kv_cache_bytes=16 << 20, max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip


def test_they_are_those_of_generation(folder: Path) -> None:
    model = llm(folder, 64)
    greedy = SamplingParams(temperature=0.0, max_tokens=12, logprobs=2, ignore_eos=True)
    (first,) = model.generate([PROMPT], greedy, use_tqdm=False)
    assert first.logprobs is not None
    whole = [*PROMPT, *first.token_ids]
    # The pages of the prompt are cached now; its logits are computed all the same.
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=2)
    (second,) = model.generate([whole], asked, use_tqdm=False)
    found = second.prompt_logprobs
    assert found is not None and len(found) == len(whole) - 1
    for prompt_info, info in zip(found[-12:], first.logprobs, strict=True):
        assert prompt_info.rank == info.rank == 1
        assert prompt_info.top_ids == info.top_ids
        assert prompt_info.logprob == pytest.approx(info.logprob, abs=1e-5)


def test_chunks_and_batch_mates_do_not_matter(folder: Path) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=1)
    plain = SamplingParams(temperature=0.0, max_tokens=3)
    (alone,) = llm(folder, 512).generate([PROMPT], asked, use_tqdm=False)
    mates = [[5, 6, 7], PROMPT, PROMPT[:20]]
    crowd = llm(folder, 16).generate(mates, [plain, asked, asked], use_tqdm=False)
    assert alone.prompt_logprobs is not None
    assert crowd[0].prompt_logprobs is None
    for result, length in ((crowd[1], 70), (crowd[2], 20)):
        assert result.prompt_logprobs is not None
        assert len(result.prompt_logprobs) == length - 1
        for one, other in zip(result.prompt_logprobs, alone.prompt_logprobs, strict=False):
            assert one.rank == other.rank
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert crowd[1].token_ids == alone.token_ids


@pytest.mark.parametrize("length", [15, 16, 17, 33])
def test_the_last_token_may_be_alone_in_its_step(folder: Path, length: int) -> None:
    """It has no target, and its step is one that decodes."""
    model = llm(folder, 16)
    asked = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=1)
    (result,) = model.generate([PROMPT[:length]], asked, use_tqdm=False)
    assert result.prompt_logprobs is not None and len(result.prompt_logprobs) == length - 1
    runner = model._engine.runner
    assert isinstance(runner, ModelRunner) and not runner._prompts._open


def test_an_aborted_prompt_is_not_that_of_the_next_of_its_name() -> None:
    def part(token_ids: list[int], start: int, targets: list[int], asked: int | None) -> ScheduledSeq:
        return ScheduledSeq(
            request_id="a", token_ids=token_ids, start=start, block_ids=[0], samples=True, seed=0,
            params=SamplingParams(prompt_logprobs=asked), num_output_tokens=0, num_prompt_tokens=2,
            prompt_targets=targets,
        )  # fmt: skip

    prompts, logits, alone = PromptLogprobs(4), torch.zeros(2, 8), Group("tensor", [0], 0, CallLog())
    for follower in (part([3], 0, [], 1), part([3], 1, [], None)):
        prompts.take(logits, [part([1, 2], 0, [2, 3], 1)], alone)
        assert prompts.complete([follower]) == {}
    prompts.take(logits, [part([1, 2], 0, [2, 3], 1)], alone)
    assert list(prompts.complete([part([3], 2, [], 1)])) == ["a"]


def test_aborted_prompts_do_not_push_out_one_that_goes_on() -> None:
    def part(name: str, start: int) -> ScheduledSeq:
        return ScheduledSeq(
            request_id=name, token_ids=[1, 2], start=start, block_ids=[0], samples=name == "last", seed=0,
            params=SamplingParams(prompt_logprobs=0), num_output_tokens=0, num_prompt_tokens=20,
            prompt_targets=[2, 3],
        )  # fmt: skip

    prompts, logits, alone = PromptLogprobs(2), torch.zeros(4, 8), Group("tensor", [0], 0, CallLog())
    for start, aborted in ((0, "b"), (2, "c"), (4, "d")):
        prompts.take(logits, [part("a", start), part(aborted, 0)], alone)
    assert sorted(prompts.complete([part("a", 6)])["a"].parts) == [0, 2, 4]


def test_a_prompt_of_one_token_has_none(folder: Path) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    (result,) = llm(folder, 64).generate([[5]], asked, use_tqdm=False)
    assert not result.prompt_logprobs
