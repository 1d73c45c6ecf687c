"""The runner below the scheduler: memory plan, inputs, sampling, and what a batch may not change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from mmx.backend import resolve_backend
from mmx.batch import ScheduledBatch, ScheduledSeq
from mmx.config import EngineConfig, SamplingParams
from mmx.errors import ConfigError, MemoryPlanError, WeightsError
from mmx.model_config import load_model_config
from mmx.model_path import model_path
from mmx.runner import ModelRunner, build_runner
from mmx.runner.inputs import make_inputs
from mmx.runner.kv_pool import page_bytes, page_types, plan_pool
from mmx.runner.memory import GIB, Limit, Needs, check_weights, memory_limit, pool_budget
from mmx.runner.parts import part_of
from mmx.runner.sampler import NOT_FINITE, sample_tokens
from mmx.tokenizer import Tokenizer
from models.harness import GREEDY, PagedSequence, all_logits, greedy, random_ids, tiny_runner
from models.tiny import write_json, write_tiny_checkpoint


@pytest.fixture(scope="module", params=["m2", "m3"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return tiny_runner(write_tiny_checkpoint(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module")
def m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("m3"), "m3", torch.bfloat16, eos_token_id=9)


# ---- building -------------------------------------------------------------------------------------


def test_facts(m3_folder: Path) -> None:
    progress: list[tuple[str, float]] = []
    config = EngineConfig(model=str(m3_folder), device="cpu", kv_cache_bytes=1 << 24)
    runner = build_runner(config, lambda phase, done: progress.append((phase, done)))
    assert (runner.family, runner.device, runner.dtype) == ("m3", "cpu", "bfloat16")
    assert (runner.vocab_size, runner.block_size, runner.eos_token_ids) == (256, 8, (9,))
    assert (runner.max_model_len, runner.max_model_len_reason) == (
        4096,
        "max_position_embeddings of the model",
    )
    # K and V: 2 heads of 16 in 5 layers; index-K: 16 in 4 layers; 8 tokens of 2 bytes.
    assert runner.num_blocks == (1 << 24) // ((2 * 2 * 16 * 5 + 16 * 4) * 8 * 2)
    assert progress[0] == ("load weights", 0.0)
    assert progress[-1] == ("load weights", 1.0)


def test_dtype_and_dummy_weights(m3_folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    (tmp_path / "config.json").write_bytes((m3_folder / "config.json").read_bytes())
    with pytest.raises(WeightsError, match="it has neither"):
        tiny_runner(tmp_path)
    first, again, other = (
        tiny_runner(tmp_path, load_format="dummy", dtype="float32", seed=seed) for seed in (1, 1, 2)
    )
    assert first.dtype == "float32"
    ids = random_ids(40, 1)
    assert torch.equal(all_logits(first, ids), all_logits(again, ids))
    assert not torch.equal(all_logits(first, ids), all_logits(other, ids))


def test_memory_plan(m3_folder: Path) -> None:
    config = load_model_config(m3_folder)
    size = page_bytes(config, torch.bfloat16)

    def plan(budget: int, max_model_len: int | None = None) -> tuple[int, int, str]:
        return plan_pool(config, torch.bfloat16, budget, "a rule", max_model_len)

    assert plan(size * 600) == (600, 4096, "max_position_embeddings of the model")
    assert plan(size * 600, 100) == (600, 100, "as asked for")
    blocks, length, reason = plan(size * 3)
    assert (blocks, length) == (3, 24)
    assert "(a rule) holds 3 pages of 8 tokens" in reason
    with pytest.raises(MemoryPlanError, match=r"max_model_len=auto does not fit: .* holds 0 pages"):
        plan(size - 1)
    with pytest.raises(MemoryPlanError, match=r"max_model_len=25 does not fit: .* holds 3 pages of 8 tokens"):
        plan(size * 3, 25)
    with pytest.raises(ConfigError, match="at most the model's max_position_embeddings=4096, got 4097"):
        plan(size * 600, 4097)


def test_default_pool_is_a_quarter_of_free_memory(m3_folder: Path) -> None:
    config = load_model_config(m3_folder)
    backend = resolve_backend("cpu")
    settings = EngineConfig(model="m")
    budget = pool_budget(settings, backend, memory_limit(settings, backend), Needs(1000)).num_bytes
    assert 0.2 * backend.free_memory() <= budget <= 0.3 * backend.free_memory()
    runner = tiny_runner(m3_folder, kv_cache_bytes=None, dtype="bfloat16")
    used = runner.num_blocks * page_bytes(config, torch.bfloat16)
    assert used <= backend.free_memory()


def test_weights_that_do_not_fit(m3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmx.backend.cpu.CpuBackend.free_memory", lambda self: 1 << 19)
    with pytest.raises(MemoryPlanError, match=r"the weights need 0.8 MiB, the engine may use 0.5 MiB of cpu"):
        tiny_runner(m3_folder)


class Device:
    """A GPU of 100 GiB in numbers."""

    name = "gpu"
    has_graphs = True
    has_fp8 = True
    pool_share: float | None = None

    def __init__(self, free: int) -> None:
        self.free = free * GIB

    def total_memory(self) -> int:
        return 100 * GIB

    def free_memory(self) -> int:
        return self.free


NEEDS = Needs(weights=40 * GIB, step=8 * GIB, graphs=2 * GIB)


def budget(free: int, **settings: float) -> Limit:
    config, device = EngineConfig(model="m", **settings), Device(free)  # type: ignore[arg-type]
    limit = memory_limit(config, device)  # type: ignore[arg-type]
    check_weights(NEEDS.weights, limit, device)  # type: ignore[arg-type]
    return pool_budget(config, device, limit, NEEDS)  # type: ignore[arg-type]


def test_pages_get_what_weights_steps_and_graphs_leave() -> None:
    assert budget(99, gpu_memory_utilization=0.75).num_bytes == 25 * GIB
    assert budget(99).num_bytes == int(0.92 * 100 * GIB) - 50 * GIB
    assert budget(99, kv_cache_bytes=7 * GIB).num_bytes == 7 * GIB
    share = budget(99, kv_cache_free_gpu_memory_fraction=0.5)
    assert share.num_bytes == (int(0.92 * 100 * GIB) - 50 * GIB) // 2
    assert share.rule == "50% of the free memory"


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(MemoryPlanError, match=r"0.75 asks for 75.00 GiB of the 100.00 GiB of gpu, but 60"):
        budget(60, gpu_memory_utilization=0.75)
    with pytest.raises(MemoryPlanError, match=r"weights need 40.00 GiB, the engine may use 30.00 GiB of gpu"):
        budget(99, gpu_memory_utilization=0.3)
    with pytest.raises(MemoryPlanError, match=r"decode graphs 2.00 GiB, 25.00 GiB are left"):
        budget(99, gpu_memory_utilization=0.75, kv_cache_bytes=26 * GIB)


def test_what_others_hold_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert budget(70).num_bytes == int(0.92 * 70 * GIB) - 50 * GIB
    assert "other processes hold 30.00 GiB of the 100.00 GiB of gpu" in caplog.text


def test_memory_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="gpu_memory_utilization must be above 0 and at most 1"):
        EngineConfig(model="m", gpu_memory_utilization=1.5)
    with pytest.raises(ValueError, match="exclude each other"):
        EngineConfig(model="m", gpu_memory_utilization=0.5, kv_cache_free_gpu_memory_fraction=0.3)


def test_fp8_pages_are_half_as_large(m3_folder: Path) -> None:
    config = load_model_config(m3_folder)
    whole = page_bytes(config, torch.bfloat16)
    assert page_bytes(config, page_types(torch.bfloat16, "fp8", "fp8")) * 2 == whole
    index_k = page_bytes(config, page_types(torch.bfloat16, "auto", "auto")) - page_bytes(
        config, page_types(torch.bfloat16, "bfloat16", "fp8")
    )
    assert index_k == 8 * 16 * 4
    with pytest.raises(ConfigError, match="kv_cache_dtype must be auto or fp8 for a model that computes in"):
        page_types(torch.float32, "bfloat16", "auto")


@pytest.mark.parametrize("family", ["m2", "m3"])
def test_fp8_pages_give_nearly_the_same_logits(tmp_path: Path, family: Literal["m2", "m3"]) -> None:
    folder = write_tiny_checkpoint(tmp_path, family)
    ids = random_ids(90, seed=1)
    exact = all_logits(tiny_runner(folder), ids)
    rounded = all_logits(tiny_runner(folder, kv_cache_dtype="fp8"), ids, chunk=20)
    difference = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < difference < 0.5


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="device npu needs torch_npu"):
        resolve_backend("npu")


# ---- inputs ---------------------------------------------------------------------------------------


def seq(ids: list[int], start: int, blocks: list[int], samples: bool = True) -> ScheduledSeq:
    return ScheduledSeq(
        request_id="r",
        token_ids=ids,
        start=start,
        block_ids=blocks,
        samples=samples,
        params=GREEDY,
        seed=0,
        num_output_tokens=0,
        num_prompt_tokens=1,
    )


def test_inputs() -> None:
    seqs = [seq([7], 9, [5, 2, 8]), seq([1, 2, 3], 3, [6, 4], samples=False), seq([4, 5], 0, [1])]
    batch = make_inputs(
        ScheduledBatch(step=0, seqs=seqs),
        block_size=4,
        device=torch.device("cpu"),
        cos_sin=torch.empty(0),
        caches=[],
    )
    assert batch.token_ids.tolist() == [7, 1, 2, 3, 4, 5]
    assert batch.positions.tolist() == [9, 3, 4, 5, 0, 1]
    assert batch.slot_mapping.tolist() == [8 * 4 + 1, 6 * 4 + 3, 4 * 4, 4 * 4 + 1, 4, 5]
    assert [row[: len(s.block_ids)] for row, s in zip(batch.block_table.tolist(), seqs, strict=True)] == [
        [5, 2, 8],
        [6, 4],
        [1],
    ]
    assert batch.cu_seqlens_q.tolist() == [0, 1, 4, 6]
    assert batch.seq_lens.tolist() == [10, 6, 2]
    assert batch.max_seqlen_q == 3
    assert batch.logit_rows is not None and batch.logit_seqs is not None
    assert batch.logit_rows.tolist() == [0, 5]
    assert batch.logit_seqs.tolist() == [0, 2]
    tail = batch.with_tail().tail
    assert tail is not None
    assert tail.positions.tolist() == [9, 1]
    assert tail.block_table.tolist() == [[5, 2, 8], [1, 0, 0]]
    assert (tail.cu_seqlens_q.tolist(), tail.seq_lens.tolist()) == ([0, 1, 2], [10, 2])


def test_batch_in_which_every_token_samples_needs_no_rows() -> None:
    batch = make_inputs(
        ScheduledBatch(step=0, seqs=[seq([7], 9, [5, 2, 8]), seq([1], 0, [0])]),
        block_size=4,
        device=torch.device("cpu"),
        cos_sin=torch.empty(0),
        caches=[],
    )
    assert batch.logit_rows is None


# ---- steps ----------------------------------------------------------------------------------------


def test_prompt_chunk_that_does_not_sample_returns_nothing(runner: ModelRunner) -> None:
    sequence = PagedSequence(runner, 0, 64)
    assert runner.execute(ScheduledBatch(step=0, seqs=[sequence.step([1, 2, 3], samples=False)])) == []


def test_batch_mates_and_chunks_do_not_change_tokens(runner: ModelRunner) -> None:
    prompts = [random_ids(length, length) for length in (1, 40, 77, 150)]
    together = greedy(runner, prompts, 20)
    assert [greedy(runner, [prompt], 20)[0] for prompt in prompts] == together
    assert greedy(runner, prompts, 20, chunk=19) == together


def test_mixed_step_of_decode_and_chunk(runner: ModelRunner) -> None:
    decoding, filling = PagedSequence(runner, 0, 200), PagedSequence(runner, 1, 200)
    prompt = random_ids(90, 3)
    runner.execute(ScheduledBatch(step=0, seqs=[decoding.step(prompt)]))
    seqs = [decoding.step([17]), filling.step(prompt[:50], samples=False)]
    mixed = runner.execute(ScheduledBatch(step=1, seqs=seqs))
    rest = runner.execute(ScheduledBatch(step=2, seqs=[filling.step([*prompt[50:], 17])]))
    assert mixed[0].token_id == rest[0].token_id


def test_last_layer_computes_rows_with_logits_only(runner: ModelRunner) -> None:
    """And gives the same as for all rows: logits and pages, bit for bit."""
    decoding, filling, ending = (PagedSequence(runner, i, 200) for i in range(3))
    prompt = random_ids(90, 3)
    steps = [
        [decoding.step(prompt)],
        [filling.step(prompt[:40], samples=False)],
        [decoding.step([17]), filling.step(prompt[40:60], samples=False), ending.step(prompt[:70])],
    ]
    for page in runner._caches[-1]:
        if page is not None:  # as unused memory may be: neither read nor changed
            page.fill_(math.nan)
    numbers: list[int] = []
    last = runner.model.layers[-1]
    handle = last.mlp.register_forward_hook(lambda _, x, __: numbers.append(x[0].shape[0]))
    for number, seqs in enumerate(steps):
        part = part_of(ScheduledBatch(step=number, seqs=seqs), runner.ranks.layout, 0)
        inputs, found = runner._inputs(part), []
        for few in (True, False):
            batch = inputs if few else replace(inputs, logit_seqs=None)
            with torch.inference_mode():
                logits = runner.model(batch)
            pages = [page.clone() for page in runner._caches[-1] if page is not None]
            found.append([tensor.view(torch.uint8) for tensor in (logits, *pages)])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    handle.remove()
    assert numbers == [1, 90, 0, 40, 2, 91]


# ---- sampling -------------------------------------------------------------------------------------


def row(params: SamplingParams, **rest: object) -> ScheduledSeq:
    fields = {"seed": 1, "num_output_tokens": 0, "num_prompt_tokens": 2} | rest
    return ScheduledSeq(
        request_id="r", token_ids=[0], start=0, block_ids=[0], samples=True, params=params, **fields
    )


LOGITS = torch.tensor([[0.0, 3.0, 2.0, 1.0]])


def sample_one(params: SamplingParams, logits: torch.Tensor = LOGITS, **rest: object):  # type: ignore[no-untyped-def]
    return sample_tokens(logits.clone(), [row(params, **rest)]).result()[0]


def test_greedy_and_ban_and_bias() -> None:
    assert sample_one(GREEDY).token_id == 1
    assert sample_one(GREEDY, banned_token_ids=[1, 2]).token_id == 3
    assert sample_one(SamplingParams(temperature=0, logit_bias={0: 100.0})).token_id == 0
    banned_and_biased = SamplingParams(temperature=0, logit_bias={1: 100.0})
    assert sample_one(banned_and_biased, banned_token_ids=[1]).token_id == 2


def test_penalties_read_the_history() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=0.7)
    assert sample_one(params, history=[3, 3, 1, 1], num_prompt_tokens=2).token_id == 2
    assert sample_one(params, history=[1, 1, 1, 1], num_prompt_tokens=4).token_id == 1


def test_logprobs_are_those_of_the_model() -> None:
    """Neither temperature nor penalties show in them; each row gets as many as it asked for."""
    expected = LOGITS.log_softmax(-1)[0].tolist()
    params = SamplingParams(temperature=0, logprobs=2, logit_bias={0: 100.0})
    seqs = [row(params), row(GREEDY), row(SamplingParams(temperature=0, logprobs=0)), row(GREEDY)]
    results = sample_tokens(LOGITS.repeat(4, 1), seqs).result()
    first, second, third, _ = (result.logprobs for result in results)
    assert results[0].token_id == 0
    assert first is not None
    assert third is not None
    assert second is None
    assert first.logprob == pytest.approx(expected[0])
    assert (first.rank, first.top_ids) == (4, [1, 2])
    assert first.top_logprobs == pytest.approx([expected[1], expected[2]])
    assert (third.logprob, third.rank, third.top_ids) == (pytest.approx(expected[1]), 1, [])


def test_more_logprobs_than_ids() -> None:
    logprobs = sample_one(SamplingParams(temperature=0, logprobs=20)).logprobs
    assert logprobs.top_ids == [1, 2, 3, 0]


def test_draws_depend_on_seed_and_step_only() -> None:
    params = SamplingParams(temperature=1.0)
    draws = [
        sample_one(params, seed=seed, num_output_tokens=step).token_id for seed in range(8) for step in (0, 1)
    ]
    again = [
        sample_one(params, seed=seed, num_output_tokens=step).token_id for seed in range(8) for step in (0, 1)
    ]
    assert draws == again
    assert len(set(draws)) > 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_row_that_is_not_finite_fails_alone(bad: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = bad
    params = SamplingParams(temperature=0, logprobs=1)
    results = sample_tokens(logits, [row(params)] * 3).result()
    assert [result.error for result in results] == [None, NOT_FINITE, None]
    assert results[1].logprobs is None
    assert [results[0].token_id, results[2].token_id] == [1, 1]


def test_ids_without_text_and_placeholders_are_never_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = model_path(None)
    known = Tokenizer(demo).vocab_size
    folder = write_tiny_checkpoint(tmp_path, "m3", variant={"vocab_size": known + 5}, eos_token_id=9)
    (folder / "tokenizer.json").write_bytes((demo / "tokenizer.json").read_bytes())
    runner = tiny_runner(folder)
    image = Tokenizer(folder).id_of("]<]image[>[")
    logits = torch.zeros(1, known + 5)
    logits[0, 7] = 1.0
    logits[0, [image, known + 1, known + 4]] = 2.0
    monkeypatch.setattr(runner, "forward", lambda batch: logits.clone())
    batch = ScheduledBatch(step=0, seqs=[row(GREEDY)])
    assert [token.token_id for token in runner.execute(batch)] == [7]
