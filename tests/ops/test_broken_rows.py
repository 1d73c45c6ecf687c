"""A token that is NaN or infinite changes no bit of the others, in every op that works row by row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmx import ops
from mmx.ops import Activation
from ops.compare import assert_equal

HIDDEN, INTER, EXPERTS, TOPK, EPS = 256, 128, 8, 2, 1e-6
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
# Each number of tokens is served by other kernels on a GPU.
COUNTS = [2, 12, 40, 300]
RowOp = Callable[[torch.Tensor], torch.Tensor]


def check(run: RowOp, x: torch.Tensor) -> None:
    """Rows before and behind a broken one, and that one: whatever it is, it is not finite."""
    clean, broken = run(x), len(x) // 2
    others = torch.arange(len(x), device=x.device) != broken
    for value in (float("nan"), float("inf"), float("-inf")):
        poisoned = x.clone()
        poisoned[broken] = value
        out = run(poisoned)
        assert_equal(out[others], clean[others], name=f"rows beside one of {value}")
        assert not out[broken].isfinite().all()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype, count, device, rng):
    x = torch.randn(count, HIDDEN, generator=rng).to(dtype).to(device)
    weight = torch.randn(64, HIDDEN, generator=rng).to(dtype).to(device)
    check(lambda x: ops.linear(x, weight), x)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype, count, device, rng):
    x, residual = (torch.randn(count, HIDDEN, generator=rng).to(dtype).to(device) for _ in range(2))
    gain = torch.rand(HIDDEN, generator=rng).to(dtype).to(device)
    check(lambda x: ops.rms_norm(x, gain, EPS, False), x)
    check(lambda x: ops.add_rms_norm(residual.clone(), x, gain, EPS, False), x)


@pytest.mark.parametrize("count", COUNTS)
def test_e4m3(count, device, rng):
    x = torch.randn(count, HIDDEN, generator=rng).bfloat16().to(device)
    weight = torch.randn(128, HIDDEN, generator=rng).to(torch.float8_e4m3fn).to(device)
    scale = (torch.rand(1, HIDDEN // 128, generator=rng) + 0.5).to(device)
    check(lambda x: ops.fp8_linear(*ops.fp8_quantize(x), weight, scale, torch.bfloat16), x)


def experts_of(count: int, device: torch.device, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Offsets, sorted rows and positions of random choices."""
    ids = torch.rand(count, EXPERTS, generator=rng).argsort(-1)[:, :TOPK].int()
    return ops.moe_plan(ids.to(device), 0, EXPERTS)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(dtype, count, device, rng):
    x = torch.randn(count, HIDDEN, generator=rng).to(dtype).to(device)
    up = (torch.randn(EXPERTS, 2 * INTER, HIDDEN, generator=rng) * 0.1).to(dtype).to(device)
    down = (torch.randn(EXPERTS, HIDDEN, INTER, generator=rng) * 0.1).to(dtype).to(device)
    topk_weights = torch.rand(count, TOPK, generator=rng).to(device)
    offsets, rows, positions = experts_of(count, device, rng)

    def run(x: torch.Tensor) -> torch.Tensor:
        h = ops.moe_gate_up(x, up, None, offsets, rows, Activation.SILU)
        return ops.moe_combine(ops.moe_down(h, down, None, offsets), positions, topk_weights)

    check(run, x)


@pytest.mark.parametrize("count", COUNTS)
def test_e4m3_experts(count, device, rng):
    x = torch.randn(count, HIDDEN, generator=rng).bfloat16().to(device)

    def weight(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.randn(EXPERTS, n, k, generator=rng).to(torch.float8_e4m3fn)
        return codes.to(device), (torch.rand(EXPERTS, n // 128, k // 128, generator=rng) * 0.1).to(device)

    up, down = weight(2 * INTER, HIDDEN), weight(HIDDEN, INTER)
    topk_weights = torch.rand(count, TOPK, generator=rng).to(device)
    offsets, rows, positions = experts_of(count, device, rng)

    def run(x: torch.Tensor) -> torch.Tensor:
        h = ops.fp8_moe_gate_up(*ops.fp8_quantize(x), *up, offsets, rows, Activation.SILU)
        return ops.moe_combine(ops.fp8_moe_down(*h, *down, offsets, torch.bfloat16), positions, topk_weights)

    check(run, x)
