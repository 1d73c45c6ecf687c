"""The emulation of tensor core sums: against the device, and what it must be anywhere."""

from __future__ import annotations

import pytest
import torch

from mmx import ops
from mmx.ops import Activation, reference
from models import tensor_core

E4M3 = torch.float8_e4m3fn
CUDA = torch.device("cuda")


def codes(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=rng) * 64).to(E4M3)


@pytest.mark.cuda
@pytest.mark.parametrize("k", [32, 64, 128])
def test_sums_are_those_of_the_library_bit_for_bit(k: int, rng: torch.Generator) -> None:
    """A product of torch's without scales, of one block of k."""
    x, weight, one = codes(rng, 64, k).cuda(), codes(rng, 128, k).cuda(), torch.ones((), device=CUDA)
    found = torch._scaled_mm(
        x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True
    )
    assert torch.equal(found.double(), tensor_core.block_sums(x, weight))


@pytest.mark.cuda
@pytest.mark.parametrize(("num_tokens", "hidden", "inter"), [(3, 128, 128), (60, 512, 256), (300, 3072, 128)])
def test_products_are_those_of_the_kernels_but_for_fp32_rounding(
    num_tokens: int, hidden: int, inter: int, rng: torch.Generator
) -> None:
    x = [t.cuda() for t in reference.fp8_quantize(torch.randn(num_tokens, hidden, generator=rng))]
    weight = codes(rng, 4, 2 * inter, hidden).cuda()
    scale = (torch.rand(4, 2 * inter // 128, hidden // 128, generator=rng) / 64 * hidden**-0.5).cuda()
    out = ops.fp8_linear(*x, weight[0], scale[0], torch.bfloat16)
    expected = tensor_core.fp8_linear(*x, weight[0], scale[0], torch.bfloat16)
    assert (out != expected).double().mean() < 1e-3
    exact = reference.fp8_linear(*x, weight[0], scale[0], torch.float64).bfloat16()
    assert (out != exact).double().mean() > 1e-2, "sums in fp32 would have passed"
    ids = torch.rand(num_tokens, 4, generator=rng).argsort(1)[:, :2].int().cuda()
    offsets, rows, _ = ops.moe_plan(ids, 0, 4)
    args = (*x, weight, scale, offsets, rows, Activation.SILU)
    found, expected = (
        f(*args)[0].view(torch.uint8) for f in (ops.fp8_moe_gate_up, tensor_core.fp8_moe_gate_up)
    )
    assert (found != expected).double().mean() < 1e-3


def test_sums_are_exact_while_fractions_fit_and_cut_off_beyond() -> None:
    ones = torch.ones(1, 128).to(E4M3)
    assert tensor_core.block_sums(ones, ones).item() == 128
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 1:] = 448, 2**-9
    x = torch.ones(1, 32).to(E4M3)
    # 448 is 1.75 x 2^8: what lies below 2^-5 is lost.
    assert tensor_core.block_sums(x, weight.to(E4M3)).item() == 448
    weight[0, 1] = -(2**-5) * 1.5
    assert tensor_core.block_sums(x, weight.to(E4M3)).item() == 448 - 2**-5
