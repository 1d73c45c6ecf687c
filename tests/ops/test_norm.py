from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
EPS = 1e-6


def make(dims: dict[str, int], dtype: torch.dtype, device: torch.device, rng: torch.Generator) -> tuple:
    shape = (dims["num_tokens"], dims["num_heads"], dims["hidden"])
    x = torch.randn(shape, generator=rng).to(dtype)
    weight = torch.rand(dims["hidden"], generator=rng).to(dtype) - 0.5
    return x.to(device), weight.to(device)


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("norm", "rms_norm"))
def test_rms_norm(dims, dtype, gemma, device, rng):
    x, weight = make(dims, dtype, device, rng)
    out = ops.rms_norm(strided(x), weight, EPS, gemma)
    truth = reference.rms_norm(x.double(), weight, EPS, gemma)
    assert_close_to_truth(out, truth, reference.rms_norm(x, weight, EPS, gemma))
    rows = x[:, 0].contiguous()
    assert_equal(ops.rms_norm(rows, weight, EPS, gemma), out[:, 0])
    assert_equal(ops.rms_norm(rows, weight, EPS, gemma, out=rows), out[:, 0])


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("norm", "add_rms_norm"))
def test_add_rms_norm(dims, dtype, gemma, device, rng):
    x, weight = make(dims, dtype, device, rng)
    x = x[:, 0].contiguous()
    residual = torch.randn(x.shape, generator=rng).to(dtype).to(device)
    expected_sum = residual + x
    out = ops.add_rms_norm(residual, strided(x), weight, EPS, gemma)
    assert_equal(residual, expected_sum, name="residual")
    truth = reference.rms_norm(expected_sum.double(), weight, EPS, gemma)
    assert_close_to_truth(out, truth, reference.rms_norm(expected_sum, weight, EPS, gemma))


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("norm", "add_rms_norm_quantize"))
def test_add_rms_norm_quantize(dims, dtype, gemma, device, rng):
    x, weight = make(dims, dtype, device, rng)
    x = x[:, 0].contiguous()
    residual = torch.randn(x.shape, generator=rng).to(dtype).to(device)
    same, truth = residual.clone(), residual.clone()
    expected = ops.add_rms_norm(same, x, weight, EPS, gemma)
    out, codes, scale = ops.add_rms_norm_quantize(residual, strided(x), weight, EPS, gemma)
    assert_equal(residual, same, name="residual")
    assert_equal(out, expected, name="out")
    expected_codes, expected_scale = ops.fp8_quantize(out)
    assert_equal(codes.float(), expected_codes.float(), name="codes")
    assert_equal(scale, expected_scale, name="scale")
    into = x.clone()
    assert_equal(
        ops.add_rms_norm_quantize(truth, into, weight, EPS, gemma, out=into)[1].float(), codes.float()
    )
    assert_equal(into, out, name="in place")


@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("norm", "combine_add_rms_norm"))
def test_combine_add_rms_norm(dims, dtype, with_shared, device, rng):
    """The bits of the ops that it stands for."""
    num_tokens, topk, hidden = dims["num_tokens"], dims["topk"], dims["hidden"]
    x = torch.randn(num_tokens * topk, hidden, generator=rng).to(dtype).to(device)
    positions = torch.randperm(num_tokens * topk, generator=rng, dtype=torch.int32).to(device)
    positions[1::7] = -1
    weights = torch.rand(num_tokens, topk, generator=rng).to(device)
    shared = torch.randn(num_tokens, hidden, generator=rng).to(dtype).to(device) if with_shared else None
    gain = (torch.rand(hidden, generator=rng) - 0.5).to(dtype).to(device)
    residual = torch.randn(num_tokens, hidden, generator=rng).to(dtype).to(device)
    same = residual.clone()
    rows = (x, positions, weights, shared)
    expected = ops.add_rms_norm(same, ops.moe_combine(*rows), gain, EPS, True)
    for quantize in (False, True) if hidden % 128 == 0 else (False,):
        stream = strided(residual)
        out, *codes = ops.combine_add_rms_norm(stream, *rows, gain, EPS, True, quantize)
        assert_equal(stream, same, name="residual")
        assert_equal(out, expected, name="out")
        for name, found, want in zip(("codes", "scale"), codes, ops.fp8_quantize(out), strict=quantize):
            assert_equal(found.float(), want.float(), name=name)


def test_add_rms_norm_quantize_refuses_a_cut_group(device):
    x = torch.zeros(2, 192, device=device)
    with pytest.raises(
        RuntimeError, match="add_rms_norm_quantize: hidden must be a multiple of 128, got 192"
    ):
        ops.add_rms_norm_quantize(x, x.clone(), torch.zeros(192, device=device), EPS, False)


def test_rms_norm_names_the_wrong_dimension(device):
    x = torch.zeros(2, 8, device=device)
    with pytest.raises(RuntimeError, match=r"rms_norm: weight must be \[hidden=8\], got \[7\]"):
        ops.rms_norm(x, torch.zeros(7, device=device), EPS, False)
    with pytest.raises(RuntimeError, match="rms_norm: x must be float32 or bfloat16, got Half"):
        ops.rms_norm(x.half(), torch.zeros(8, device=device), EPS, False)


def test_rms_norm_huge_and_tiny_values(device):
    weight = torch.ones(64, device=device)
    for scale in (1e18, 1e-18):
        x = torch.full((1, 64), scale, device=device)
        truth = reference.rms_norm(x.double(), weight, EPS, False)
        assert_close_to_truth(ops.rms_norm(x, weight, EPS, False), truth, truth.float())


def test_norms_do_not_depend_on_threads(rng):
    x, residual = torch.randn(67, 384, generator=rng), torch.randn(67, 384, generator=rng)
    gain, threads, outs = torch.rand(384, generator=rng), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            stream = residual.clone()
            outs.append([ops.rms_norm(x, gain, EPS, True), stream])
            outs[-1] += ops.add_rms_norm_quantize(stream, x, gain, EPS, False)
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*outs, strict=True):
        assert_equal(two.float(), one.float())


def test_combine_add_rms_norm_wants_codes_with_their_scale(device):
    rows, places = torch.zeros(2, 128, device=device), torch.zeros(2, dtype=torch.int32, device=device)
    args = (rows.clone(), rows, places, torch.zeros(2, 1, device=device), None, rows[0], EPS, False)
    codes = torch.empty(2, 128, dtype=torch.float8_e4m3fn, device=device)
    with pytest.raises(RuntimeError, match="combine_add_rms_norm: codes and scale must be given together"):
        torch.ops.mmx.combine_add_rms_norm(rows.clone(), codes, None, *args)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_opcheck(op, device, rng):
    x, weight = torch.randn(4, 8, generator=rng).to(device), torch.ones(8, device=device)
    outs = (torch.empty_like(x),) if op == "rms_norm" else (torch.empty_like(x), x.clone())
    torch.library.opcheck(getattr(torch.ops.mmx, op).default, (*outs, x, weight, EPS, True))
