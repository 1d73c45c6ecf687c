"""A step launched before the one before it is committed gives the tokens of the plain loop (CPU, fp32).

Also with the bookkeeping of decode graphs, whose replay is played by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from engine.driving import tokens_of
from engine.prompts import random_prompt
from mmx import LLM, SamplingParams
from mmx.config import EngineConfig
from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.model_config import load_model_config
from mmx.protocol import Abort, StepOutput, Submit
from mmx.runner import ModelRunner, build_runner
from mmx.runner.graphs import DecodeGraphs, graph_sizes
from mmx.runner.kv_pool import page_bytes
from unit.consistency import check_scheduler

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_TOKENS = 12


class PlayedGraphs(DecodeGraphs):
    """Runs the recorded step instead of a graph: the same inputs at the same places."""

    def capture(self, progress: Callable[[float], None]) -> None:
        """There is nothing to record."""

    def _replay(self, size: int) -> torch.Tensor:
        return self._compute(size)


def play_graphs(runner: ModelRunner) -> None:
    with patch("mmx.runner.runner.DecodeGraphs", PlayedGraphs):
        runner.capture_graphs(lambda done: None)


@pytest.fixture(params=["eager", "graphs"])
def overlapped(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_llm(folder: Path, mode: str, num_blocks: int = 300, **config: int | bool) -> LLM:
    """``mode``: "plain", or overlapped with "eager" steps or played "graphs"."""
    llm = LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
        kv_cache_bytes=num_blocks * page_bytes(load_model_config(folder), torch.float32),
        **config,  # type: ignore[arg-type]
    )
    runner = llm._engine.runner
    assert isinstance(runner, ModelRunner) and not llm._engine.overlaps
    llm._engine.overlaps = mode != "plain"
    if mode == "graphs":
        play_graphs(runner)
    return llm


def sampling(i: int, **change: object) -> SamplingParams:
    """Greedy, sampled, with log-probabilities and with penalties in turn."""
    fields: dict[str, object] = {"temperature": float(i % 2), "seed": i, "max_tokens": NUM_TOKENS - i % 3}
    fields |= {"ignore_eos": True, "top_p": 0.95, "logprobs": 2 if i % 4 == 1 else None}
    fields |= {"presence_penalty": 0.7} if i == 3 else {}
    fields |= {"logit_bias": {5: 3.0}} if i == 2 else {}
    return SamplingParams(**(fields | change))  # type: ignore[arg-type]


def outputs(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[tuple[object, ...]]:
    results = llm.generate(prompts, params, use_tqdm=False)
    check_scheduler(llm._engine.scheduler)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks
    return [(r.token_ids, r.finish_reason, r.outputs[0].logprobs) for r in results]


@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 33}, {"max_num_seqs": 3}])
def test_overlap_equals_the_plain_loop(
    folder: Path, prompts: list[list[int]], overlapped: str, config: dict[str, int]
) -> None:
    params = [sampling(i) for i in range(len(prompts))]
    expected = outputs(make_llm(folder, "plain"), prompts, params)
    llm = make_llm(folder, overlapped, **config)
    for _ in range(2):  # cold, then with prefix hits
        assert outputs(llm, prompts, params) == expected
    assert llm.stats().prefix_cache_hits > 0


def test_nothing_follows_a_stop_token(folder: Path, prompts: list[list[int]], overlapped: str) -> None:
    params = [sampling(i, presence_penalty=0.0) for i in range(len(prompts))]
    plain = make_llm(folder, "plain")
    free = outputs(plain, prompts, params)
    stopping = [
        sampling(i, presence_penalty=0.0, stop_token_ids=(tokens[4 + i % 3],))  # type: ignore[index]
        for i, (tokens, _, _) in enumerate(free)
    ]
    expected = outputs(plain, prompts, stopping)
    assert {reason for _, reason, _ in expected} == {"stop"}
    assert outputs(make_llm(folder, overlapped), prompts, stopping) == expected


def test_a_preempted_request_equals_an_undisturbed_one(folder: Path, overlapped: str) -> None:
    block_size = load_model_config(folder).block_size
    prompts = [random_prompt(block_size - 2 - i, seed=i) for i in range(4)]
    params = [sampling(i) for i in range(4)]
    expected = outputs(make_llm(folder, "plain"), prompts, params)
    for caching in (False, True):
        tight = make_llm(folder, overlapped, num_blocks=5, enable_prefix_caching=caching)
        assert outputs(tight, prompts, params) == expected
        assert tight.stats().num_preemptions > 0


def test_an_abort_at_any_step_leaks_no_page_and_no_token(
    folder: Path, prompts: list[list[int]], overlapped: str
) -> None:
    params = [sampling(i, logprobs=None) for i in range(len(prompts))]
    expected = [tokens for tokens, _, _ in outputs(make_llm(folder, "plain"), prompts, params)]
    num_blocks = 40
    pool = num_blocks * page_bytes(load_model_config(folder), torch.float32)
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", max_num_batched_tokens=48, kv_cache_bytes=pool
    )
    channel = LocalChannel()
    runner = build_runner(config, lambda phase, fraction: None)
    if overlapped == "graphs":
        play_graphs(runner)
    engine = Engine(config, runner, channel)
    engine.overlaps = True
    submits = [
        Submit(request_id=str(i), prompt_token_ids=prompt, params=p)
        for i, (prompt, p) in enumerate(zip(prompts, params, strict=True))
    ]
    ids = [submit.request_id for submit in submits]
    for num_steps in range(1, 11):
        channel.inbox += submits
        for _ in range(num_steps):
            engine.step()
        channel.inbox.append(Abort(request_ids=ids))
        # Why no step in between: a name may come back while a step of its former owner is in flight.
        if num_steps % 2:
            engine.step()
            assert engine.scheduler.blocks.num_available == num_blocks
        check_scheduler(engine.scheduler)
    channel.outbox.clear()
    channel.inbox += submits
    found = tokens_of(engine, channel)
    assert [found[request_id] for request_id in ids] == expected


def test_a_step_is_in_flight_while_the_next_is_planned(folder: Path) -> None:
    llm = make_llm(folder, "eager")
    engine = llm._engine
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    llm._channel.inbox.append(Submit(request_id="a", prompt_token_ids=[1, 2], params=params))
    seen = []
    for _ in range(4):
        engine.step()
        (step,) = llm._channel.outbox
        llm._channel.outbox.clear()
        assert isinstance(step, StepOutput)
        seen.append((step.step_tokens, len(step.outputs), engine._step is not None))
    assert seen == [(0, 0, True), (2, 1, True), (1, 1, True), (1, 1, False)]


def test_a_prompt_whose_last_token_is_a_step_of_decodes_is_explained(folder: Path, overlapped: str) -> None:
    """That step may be a graph, which computes no logits of prompts."""
    llm = make_llm(folder, overlapped, max_num_batched_tokens=16)
    asked = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=1)
    (result,) = llm.generate([random_prompt(33, seed=1)], asked, use_tqdm=False)
    assert result.prompt_logprobs is not None and len(result.prompt_logprobs) == 32


def test_graph_sizes_are_all_used(folder: Path) -> None:
    """Growing and shrinking batches: rows and tables of one size are not those of another."""
    llm = make_llm(folder, "graphs", max_num_seqs=12)
    assert graph_sizes(12) == [12, 8, 4, 2, 1]
    prompts = [random_prompt(3 + 5 * i, seed=i) for i in range(12)]
    params = [sampling(i, max_tokens=2 + 3 * i, presence_penalty=0.0) for i in range(12)]
    assert outputs(llm, prompts, params) == outputs(make_llm(folder, "plain"), prompts, params)
