"""Whole models in fp32 against transformers, from checkpoints in the published naming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from models.harness import all_logits, greedy, random_ids, tiny_runner
from models.oracle import load_oracle
from models.oracle_cases import CASES, Case
from models.tiny import write_tiny_checkpoint

NUM_GREEDY = 256


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def folder(case: Case, tmp_path: Path) -> Path:
    return case.write(tmp_path / "model")


@torch.inference_mode()
def test_logits_and_greedy_tokens(case: Case, folder: Path) -> None:
    """One forward pass of the oracle over prompt and output proves each greedy token, as its argmax after
    the same tokens."""
    runner = tiny_runner(folder, dtype="float32")
    prompt = random_ids(case.num_prompt, 5)
    output = greedy(runner, [prompt], NUM_GREEDY)[0]
    ids = prompt + output
    truth = load_oracle(folder)(torch.tensor([ids])).logits[0]
    assert truth[case.num_prompt - 1 : -1].argmax(-1).tolist() == output
    logits = all_logits(runner, ids)
    assert (logits - truth).abs().max() <= 1e-4 * truth.abs().max()
    chunked = all_logits(runner, ids, chunk=61)
    assert (chunked - truth).abs().max() <= 1e-4 * truth.abs().max()


@pytest.mark.parametrize("family", ["m2", "m3"])
@torch.inference_mode()
def test_cached_generation(family: str, tmp_path: Path) -> None:
    """The oracle's own generation loop, with its caches, gives the same 256 tokens."""
    folder = write_tiny_checkpoint(tmp_path, family, torch.float32, 12)
    prompt = random_ids(75, 6)
    generated = load_oracle(folder).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=NUM_GREEDY,
        min_new_tokens=NUM_GREEDY,
        do_sample=False,
        eos_token_id=None,
        use_mtp=False,
    )
    output = greedy(tiny_runner(folder), [prompt], NUM_GREEDY)[0]
    assert generated[0, len(prompt) :].tolist() == output


@torch.inference_mode()
def test_selection_leaves_the_dense_regime(tmp_path: Path) -> None:
    """The prompts above do reach sparse attention: the first topk x block tokens agree with a model that
    keeps all blocks, later ones do not."""
    sparse = tiny_runner(write_tiny_checkpoint(tmp_path / "sparse", "m3"))
    dense = tiny_runner(write_tiny_checkpoint(tmp_path / "dense", "m3", variant="all_blocks"))
    ids = random_ids(150, 7)
    different = (all_logits(sparse, ids) - all_logits(dense, ids)).abs().amax(-1) > 1e-4
    assert int(different.nonzero()[0]) == 32
