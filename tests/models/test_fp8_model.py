"""A checkpoint in M2.5's fp8 layout, computed with its codes, against the same model multiplied out.

Rows are rounded to e4m3, three bits, before every product: a difference of 1e-4 before a rounding moves some
values in a thousand to the neighbouring code, a step of 2^-3, which makes 1e-2 of the row's norm behind it.
Four roundings a layer so take computations that differ in the last bits of a sum to a few percent. Hence
codes are compared where they are made, on equal inputs, with sums as the device makes them; logits once with
equal codes, where only fp32 rounding is left, and once as they come, within what such sums bring about.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from mmx import ops
from mmx.ops import reference
from models import tensor_core
from models.harness import all_logits, greedy, random_ids, tiny_runner
from models.tiny import VARIANTS, write_tiny_checkpoint
from unit.test_weights import dequantised

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
# Every token takes every expert: near ties of the router would turn rounding into other experts.
VARIANT = VARIANTS["fp8"] | {"num_local_experts": 4, "num_experts_per_tok": 4}
PRODUCTS = ("fp8_linear", "fp8_moe_down", "fp8_moe_gate_up")
# These make codes.
ROUNDED = (
    "fp8_quantize",
    "add_rms_norm_quantize",
    "combine_add_rms_norm",
    "fp8_moe_gate_up",
    "paged_attention",
)
PAGED_ATTENTION = ops.paged_attention
# Share of codes that flip where fp32 sums go in another order: 3e-7 of a value, a code is 2^-4 of it.
FLIPS = 2e-4
Codes = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", params=[0, 1], ids=lambda seed: f"weights{seed}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fp8")
    return write_tiny_checkpoint(target, "m2", torch.bfloat16, seed=request.param, variant=VARIANT)


@pytest.fixture(scope="module")
def exact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Logits of the model multiplied out, in fp32."""
    plain = dequantised(folder, tmp_path_factory.mktemp("plain") / "model")
    return all_logits(tiny_runner(plain, dtype="float32"), IDS)


IDS = random_ids(90, seed=1)


def use(monkeypatch: pytest.MonkeyPatch, source: Any, names: tuple[str, ...]) -> None:
    """The products of ``source`` and the reference's rounding of rows in place of the library's."""

    def norm_then_codes(*args: Any, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ops.add_rms_norm(*args, out=out), *ops.fp8_quantize(out)

    def sum_then_codes(
        residual: torch.Tensor, *args: Any, quantize: bool = False
    ) -> tuple[torch.Tensor, ...]:
        out = ops.add_rms_norm(residual, ops.moe_combine(*args[:4]), *args[4:])
        return (out, *ops.fp8_quantize(out)) if quantize else (out,)

    def heads_then_codes(
        *args: Any, codes: torch.Tensor, codes_scale: torch.Tensor, **keywords: Any
    ) -> torch.Tensor:
        out = PAGED_ATTENTION(*args, **keywords)
        for into, made in zip((codes, codes_scale), ops.fp8_quantize(out.flatten(1)), strict=True):
            into.copy_(made)
        return out

    for name in names:
        monkeypatch.setattr(ops, name, getattr(source, name))
    monkeypatch.setattr(ops, "fp8_quantize", reference.fp8_quantize)
    monkeypatch.setattr(ops, "add_rms_norm_quantize", norm_then_codes)
    monkeypatch.setattr(ops, "combine_add_rms_norm", sum_then_codes)
    monkeypatch.setattr(ops, "paged_attention", heads_then_codes)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.cpu() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_give_nearly_the_logits_of_their_values(
    folder: Path, exact: torch.Tensor, dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice what rounding rows costs with exact sums."""
    runner = tiny_runner(folder, dtype=dtype, device=device)
    assert runner.model.layers[0].mlp.experts.down.dtype == torch.float8_e4m3fn
    assert runner.model.layers[0].attention.qkv.weight.dtype == torch.float8_e4m3fn
    found = all_logits(runner, IDS)
    use(monkeypatch, reference, PRODUCTS)
    same_precision = all_logits(tiny_runner(folder, dtype=dtype), IDS)
    assert 1e-3 < distance(found, exact) < 2 * distance(same_precision, exact)


@pytest.mark.parametrize("device", DEVICES)
def test_codes_are_those_of_the_reference_but_for_neighbours(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each op gets what the reference model's got: its codes are compared, then replaced by theirs."""
    made: list[Codes] = []

    def kept(op: Callable[..., Codes]) -> Callable[..., Codes]:
        def run(*args: Any) -> Codes:
            made.append(op(*args))
            return made[-1]

        return run

    with monkeypatch.context() as patch:
        use(patch, reference, PRODUCTS)
        # Rows in fp32: of the products only gate and up, which are rounded at once, come from tensor cores.
        source = tensor_core if device == "cuda" else reference
        patch.setattr(ops, "fp8_moe_gate_up", kept(source.fp8_moe_gate_up))
        patch.setattr(ops, "fp8_quantize", kept(reference.fp8_quantize))
        expected = all_logits(tiny_runner(folder, dtype="float32"), IDS)
    runner, rest = tiny_runner(folder, dtype="float32", device=device), list(made)
    flips: list[float] = []

    def replaced(op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **keywords: Any) -> Any:
            result = op(*args, **keywords)
            codes = (keywords["codes"], keywords["codes_scale"]) if "codes" in keywords else result[-2:]
            if len(codes) == 2:  # not the norm of a sum that is not rounded
                truth = rest.pop(0)
                flips.append(share_of_neighbours(codes, truth))
                for into, code in zip(codes, truth, strict=True):
                    into.copy_(code)
            return result

        return run

    for name in ROUNDED:
        monkeypatch.setattr(ops, name, replaced(getattr(ops, name)))
    found = all_logits(runner, IDS)
    assert not rest and len(made) == 4 * len(runner.model.layers)
    assert distance(found, expected) < 1e-5
    assert mean(flips) < FLIPS


def share_of_neighbours(found: Codes, expected: Codes) -> float:
    """Share of codes that are one step off; none may be further."""
    places = []
    for codes, _ in (found, expected):
        bits = codes.cpu().view(torch.uint8).int()
        places.append(torch.where(bits >= 128, 128 - bits, bits))
    torch.testing.assert_close(found[1].cpu(), expected[1].cpu(), rtol=2**-12, atol=0)
    steps = (places[0] - places[1]).abs()
    assert steps.max() <= 1, f"a code is {steps.max()} steps away"
    return steps.float().mean().item()


@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_those_of_the_reference_but_for_codes_that_flip(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = all_logits(tiny_runner(folder, dtype="float32", device=device), IDS)
    with monkeypatch.context() as patch:
        use(patch, tensor_core, PRODUCTS)
        flipped = all_logits(tiny_runner(folder, dtype="float32"), IDS)
    use(monkeypatch, reference, PRODUCTS)
    expected = all_logits(tiny_runner(folder, dtype="float32"), IDS)
    assert distance(found, expected) < 2 * distance(flipped, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_do_not_depend_on_the_chunk(folder: Path, device: str) -> None:
    runner = tiny_runner(folder, dtype="float32", device=device)
    prompts = [random_ids(count, seed=count) for count in (3, 47)]
    assert greedy(runner, prompts, 8, chunk=7) == greedy(runner, prompts, 8)
