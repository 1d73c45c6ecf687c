"""A checkpoint in M2.5's fp8 layout, computed with its codes, against the same model multiplied out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmx import ops
from mmx.ops import reference
from models.harness import all_logits, greedy, random_ids, tiny_runner
from models.tiny import VARIANTS, write_tiny_checkpoint
from unit.test_weights import dequantised

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
# Every token takes every expert: near ties of the router would turn rounding into other experts.
VARIANT = VARIANTS["fp8"] | {"num_local_experts": 4, "num_experts_per_tok": 4}
# Share of the logits' norm. Rows rounded to e4m3 (3 bits) before every product of 3 random layers:
ROUNDED_ROWS = 0.15
# The same rounding, but other sums (on a GPU of 14 bits), which now and then round to the neighbouring code:
SAME_ROUNDING = 0.06
FP8_OPS = ("fp8_linear", "fp8_moe_down", "fp8_moe_gate_up", "fp8_quantize")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("fp8"), "m2", torch.bfloat16, variant=VARIANT)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_give_nearly_the_logits_of_their_values(
    folder: Path, tmp_path: Path, dtype: str, device: str
) -> None:
    ids = random_ids(90, seed=1)
    exact = all_logits(tiny_runner(dequantised(folder, tmp_path / "plain"), dtype="float32"), ids)
    runner = tiny_runner(folder, dtype=dtype, device=device)
    assert runner.model.layers[0].mlp.experts.down.dtype == torch.float8_e4m3fn
    assert runner.model.layers[0].attention.qkv.weight.dtype == torch.float8_e4m3fn
    found = all_logits(runner, ids).cpu()
    assert 1e-3 < (found - exact).norm() / exact.norm() < ROUNDED_ROWS


@pytest.mark.parametrize("device", DEVICES)
def test_ops_give_the_logits_of_their_references(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(60, seed=2)
    found = all_logits(tiny_runner(folder, dtype="float32", device=device), ids).cpu()
    for op in FP8_OPS:
        monkeypatch.setattr(ops, op, getattr(reference, op))
    expected = all_logits(tiny_runner(folder, dtype="float32"), ids)
    assert (found - expected).norm() / expected.norm() < SAME_ROUNDING


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_do_not_depend_on_the_chunk(folder: Path, device: str) -> None:
    runner = tiny_runner(folder, dtype="float32", device=device)
    prompts = [random_ids(count, seed=count) for count in (3, 47)]
    assert greedy(runner, prompts, 8, chunk=7) == greedy(runner, prompts, 8)
