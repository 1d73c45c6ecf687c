"""What the engine does around a model never changes a token (fp32, CPU, real kernels, tiny models).

Chunks, prefix hits, preemptions, batch mates, aborts and threads are compared with the same request
alone, prefilled whole, in a pool that has room for everything.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.driving import tokens_of
from engine.prompts import PROMPT_LENGTHS, random_prompt
from mmx import LLM, SamplingParams
from mmx.config import EngineConfig
from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.model_config import load_model_config
from mmx.protocol import Abort, ResetPrefixCache, Submit
from mmx.runner import ModelRunner, build_runner
from mmx.runner.kv_pool import page_bytes
from unit.consistency import check_scheduler

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_TOKENS = 10


def sampling(i: int, num_tokens: int = NUM_TOKENS) -> SamplingParams:
    """Greedy and seeded sampling in turn: random models repeat themselves when they are greedy."""
    return SamplingParams(
        temperature=float(i % 2), seed=i, max_tokens=num_tokens, ignore_eos=True, top_p=0.95, logprobs=1
    )


@pytest.fixture(scope="module")
def alone(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The truth: each prompt by itself, in one chunk, without prefix cache."""
    llm = make_llm(folder, enable_prefix_caching=False)
    return [llm.generate([prompt], sampling(i))[0].token_ids for i, prompt in enumerate(prompts)]


def make_llm(folder: Path, num_blocks: int = 300, **config: int | bool) -> LLM:
    """An engine whose unwritten pages are NaN: reading one would show."""
    llm = LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
        kv_cache_bytes=num_blocks * page_bytes(load_model_config(folder), torch.float32),
        **config,  # type: ignore[arg-type]
    )
    assert llm.stats().num_blocks == num_blocks
    assert isinstance(llm._engine.runner, ModelRunner)
    poison(llm._engine.runner)
    return llm


def poison(runner: ModelRunner) -> None:
    for cache in runner._caches:
        for tensor in cache:
            if tensor is not None:
                tensor.fill_(float("nan"))


def tokens(llm: LLM, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    results = llm.generate(prompts, [sampling(i, num_tokens) for i in range(len(prompts))])
    check_scheduler(llm._engine.scheduler)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks
    return [result.token_ids for result in results]


def test_the_truth_is_worth_comparing_with(alone: list[list[int]]) -> None:
    assert all(len(set(output)) > 3 for output in alone[1::2])
    assert len({tuple(output) for output in alone}) == len(alone)


@pytest.mark.parametrize("chunk", [1, 3, 8, 33, 128, 131])
def test_any_chunking_equals_the_whole_prefill(
    folder: Path, prompts: list[list[int]], alone: list[list[int]], chunk: int
) -> None:
    if chunk == 1:  # one token a step is slow, the shorter prompts cross page borders as well
        prompts, alone = prompts[:4], alone[:4]
    llm = make_llm(folder, max_num_batched_tokens=chunk, enable_prefix_caching=False)
    assert tokens(llm, prompts) == alone
    assert llm.stats().num_steps >= sum(map(len, prompts)) // chunk


def test_a_prefix_hit_equals_a_miss(folder: Path, prompts: list[list[int]], alone: list[list[int]]) -> None:
    llm = make_llm(folder)
    assert tokens(llm, prompts) == alone
    for _ in range(2):
        before = llm.stats().prefix_cache_hits
        assert tokens(llm, prompts) == alone
        assert llm.stats().prefix_cache_hits > before


def test_a_partial_hit_equals_a_miss(folder: Path, prompts: list[list[int]]) -> None:
    block_size = load_model_config(folder).block_size
    stem = prompts[-1]
    forks = [
        stem[:num_common] + random_prompt(20, seed=num_common)
        for num_common in (block_size - 1, block_size, block_size + 1, 2 * block_size, len(stem))
    ]
    cold = make_llm(folder, enable_prefix_caching=False)
    expected = [tokens(cold, [fork])[0] for fork in forks]
    warm = make_llm(folder)
    tokens(warm, [stem])
    hits = []
    for fork, output in zip(forks, expected, strict=True):
        (result,) = warm.generate([fork], sampling(0))
        assert result.token_ids == output
        hits.append(result.num_cached_tokens)
    assert hits == [0, block_size, block_size, 2 * block_size, len(stem) // block_size * block_size]


def test_a_preempted_request_equals_an_undisturbed_one(folder: Path) -> None:
    block_size = load_model_config(folder).block_size
    # Each starts with one page and needs a second one; there is no room for all second ones.
    prompts = [random_prompt(block_size - 2 - i, seed=i) for i in range(4)]
    roomy = make_llm(folder, enable_prefix_caching=False)
    expected = [roomy.generate([p], sampling(i, 12))[0].token_ids for i, p in enumerate(prompts)]
    for caching in (False, True):
        tight = make_llm(folder, num_blocks=5, enable_prefix_caching=caching)
        assert tokens(tight, prompts, 12) == expected
        assert tight.stats().num_preemptions > 0


def test_a_batch_of_32_equals_32_single_runs(folder: Path) -> None:
    longest = PROMPT_LENGTHS[folder.name][-1]
    prompts = [random_prompt(1 + (37 * i) % longest, seed=100 + i) for i in range(32)]
    llm = make_llm(folder, enable_prefix_caching=False)
    single = [llm.generate([p], sampling(i))[0].token_ids for i, p in enumerate(prompts)]
    assert tokens(llm, prompts) == single
    mixed = make_llm(folder, max_num_seqs=7, max_num_batched_tokens=50)
    assert tokens(mixed, prompts) == single


def test_an_abort_at_any_step_leaks_no_page(
    folder: Path, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    config = EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        max_num_batched_tokens=48,
        kv_cache_bytes=40 * page_bytes(load_model_config(folder), torch.float32),
    )
    channel = LocalChannel()
    runner = build_runner(config, lambda phase, fraction: None)
    poison(runner)
    engine = Engine(config, runner, channel)
    submits = [
        Submit(request_id=str(i), prompt_token_ids=prompt, params=sampling(i))
        for i, prompt in enumerate(prompts)
    ]
    ids = [submit.request_id for submit in submits]
    for num_steps in range(1, 13):
        if num_steps % 2:  # cold and warm in turn
            channel.inbox.append(ResetPrefixCache())
        channel.inbox += submits
        engine.step()
        for _ in range(num_steps - 1):
            if engine.scheduler.has_work:
                engine.step()
        channel.inbox.append(Abort(request_ids=ids))
        engine.step()
        check_scheduler(engine.scheduler)
        assert not engine.scheduler.has_work
        assert engine.scheduler.blocks.num_available == 40
    channel.outbox.clear()
    channel.inbox += submits
    outputs = tokens_of(engine, channel)
    assert [outputs[request_id] for request_id in ids] == alone


def test_two_threads_equal_one(folder: Path, prompts: list[list[int]], alone: list[list[int]]) -> None:
    torch.set_num_threads(2)  # torch and the kernels share one OpenMP runtime
    try:
        assert tokens(make_llm(folder), prompts) == alone
    finally:
        torch.set_num_threads(1)
