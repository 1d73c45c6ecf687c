"""Whole models on an NVIDIA GPU against the same models on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmx import LLM, SamplingParams
from mmx.runner.graphs import graph_sizes
from models.harness import all_logits, greedy, random_ids, tiny_runner
from models.oracle_cases import CASES, Case
from models.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module", params=["m2", "m3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def test_graph_sizes_cover_every_batch() -> None:
    for max_num_seqs in (1, 3, 8, 60, 64, 65, 256):
        sizes = graph_sizes(max_num_seqs)
        assert sizes == sorted(set(sizes), reverse=True)
        assert (sizes[0], sizes[-1]) == (max_num_seqs, 1)


@pytest.mark.cuda
def test_fp32_gives_the_tokens_of_the_cpu(folder: Path) -> None:
    """Prompts reach beyond topk x block; without graphs, and with them."""
    prompts = [random_ids(count, seed=count) for count in (3, 47, 120)]
    cpu, eager = tiny_runner(folder), tiny_runner(folder, device="cuda", enforce_eager=True)
    torch.testing.assert_close(
        all_logits(eager, prompts[2]).cpu(), all_logits(cpu, prompts[2]), rtol=1e-4, atol=1e-4
    )
    expected = greedy(cpu, prompts, 64)
    assert greedy(eager, prompts, 64) == expected
    graphs = tiny_runner(folder, device="cuda", max_num_seqs=4)
    assert greedy(graphs, prompts, 64) == expected
    assert greedy(graphs, prompts, 64, chunk=7) == expected


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle_models_give_the_tokens_of_the_cpu(case: Case, tmp_path: Path) -> None:
    folder = case.write(tmp_path / "model")
    prompts = [random_ids(case.num_prompt, seed=7), random_ids(9, seed=8)]
    expected = greedy(tiny_runner(folder, dtype="float32"), prompts, 64)
    assert (
        greedy(tiny_runner(folder, dtype="float32", device="cuda", max_num_seqs=2), prompts, 64) == expected
    )


@pytest.mark.cuda
def test_sampling_gives_the_tokens_of_the_cpu(folder: Path) -> None:
    params = SamplingParams(
        temperature=0.8, top_k=40, top_p=0.9, seed=5, max_tokens=24, ignore_eos=True, presence_penalty=0.5
    )
    prompts = [random_ids(count, seed=count) for count in (5, 31)]
    expected, found = (
        LLM(
            str(folder), device=device, dtype="float32", skip_tokenizer_init=True, kv_cache_bytes=1 << 25
        ).generate(prompts, params, use_tqdm=False)
        for device in ("cpu", "cuda")
    )
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]


@pytest.mark.cuda
@pytest.mark.parametrize("config", [{}, {"max_num_batched_tokens": 33, "max_num_seqs": 3}])
def test_overlap_and_graphs_give_the_tokens_of_the_plain_loop(folder: Path, config: dict[str, int]) -> None:
    prompts = [random_ids(count, seed=count) for count in (1, 7, 8, 33, 75)]
    params = [
        SamplingParams(
            temperature=i % 2,
            seed=i,
            max_tokens=20 + i,
            ignore_eos=True,
            presence_penalty=0.7 * (i == 3),
            logprobs=2 if i == 1 else None,
        )
        for i in range(len(prompts))
    ]
    found = []
    for plain in (False, True):
        llm = LLM(
            str(folder),
            device="cuda",
            dtype="float32",
            skip_tokenizer_init=True,
            kv_cache_bytes=1 << 25,
            enforce_eager=plain,
            async_scheduling=not plain,
            **config,
        )
        assert llm._engine.overlaps != plain
        for _ in range(2):  # cold, then with prefix hits
            results = llm.generate(prompts, params, use_tqdm=False)
            found.append([result.token_ids for result in results])
        assert llm.stats().num_free_blocks == llm.stats().num_blocks
    assert all(tokens == found[0] for tokens in found[1:])


@pytest.mark.cuda
def test_demo_model_in_bf16_answers_as_on_the_cpu() -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0.0, max_tokens=48)
    for device in ("cpu", "cuda"):
        llm = LLM(device=device, kv_cache_bytes=1 << 28)
        assert "Paris" in llm.chat(question, params, use_tqdm=False)[0].text
