"""AscendC norms on the emulator: the shared cases against the shared references."""

from __future__ import annotations

import pytest
import torch

from ascend.emulated import RefusedError
from cases import load
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal, strided

EPS = 1e-6
BF16 = torch.bfloat16
WEIGHTS = [pytest.param(BF16, id="bf16-weight"), pytest.param(torch.float32, id="f32-weight")]


def rms_norm_values(out, x, weight, gemma):
    tokens, heads, hidden = x.shape
    return {
        "out": out,
        "x": x,
        "weight": weight,
        "num_tokens": tokens,
        "num_heads": heads,
        "hidden": hidden,
        "out_token_stride": out.stride(0),
        "out_head_stride": out.stride(1),
        "x_token_stride": x.stride(0),
        "x_head_stride": x.stride(1),
        "eps": EPS,
        "gemma": gemma,
        "dtype": BF16,
        "weight_dtype": weight.dtype,
    }


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("weight_dtype", WEIGHTS)
@pytest.mark.parametrize("dims", [c for c in load("norm", "rms_norm") if c.values[0]["num_tokens"]])
def test_rms_norm(dims, weight_dtype, gemma, run_all, rng):
    shape = (dims["num_tokens"], dims["num_heads"], dims["hidden"])
    x = torch.randn(shape, generator=rng).to(BF16)
    weight = (torch.rand(dims["hidden"], generator=rng) - 0.5).to(weight_dtype)

    def make():
        out = strided(torch.zeros(shape, dtype=BF16))
        return rms_norm_values(out, strided(x), weight, gemma), [out]

    (out,) = run_all("rms_norm", "RmsNormParams", make)
    truth = reference.rms_norm(x.double(), weight, EPS, gemma)
    assert_close_to_truth(out, truth, reference.rms_norm(x, weight, EPS, gemma))
    if not gemma:
        rows = x.clone()
        run_all.emulator.run("rms_norm", "RmsNormParams", rms_norm_values(rows, rows, weight, gemma))
        assert_equal(rows, out, name="in place")


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dims", [c for c in load("norm", "add_rms_norm") if c.values[0]["num_tokens"]])
def test_add_rms_norm(dims, gemma, run_all, rng):
    shape = (dims["num_tokens"], dims["hidden"])
    x, before = (torch.randn(shape, generator=rng).to(BF16) for _ in range(2))
    weight = (torch.rand(dims["hidden"], generator=rng) - 0.5).to(BF16)

    def make():
        out, residual = torch.zeros_like(x), strided(before)
        values = {
            "out": out,
            "residual": residual,
            "x": strided(x),
            "weight": weight,
            "num_tokens": shape[0],
            "hidden": shape[1],
            "out_stride": out.stride(0),
            "residual_stride": residual.stride(0),
            "x_stride": shape[1] + 3,
            "eps": EPS,
            "gemma": gemma,
            "dtype": BF16,
            "weight_dtype": BF16,
        }
        return values, [out, residual]

    out, residual = run_all("add_rms_norm", "AddRmsNormParams", make)
    assert_equal(residual, before + x, name="residual")
    truth = reference.rms_norm(residual.double(), weight, EPS, gemma)
    assert_close_to_truth(out, truth, reference.rms_norm(residual, weight, EPS, gemma))


def test_says_what_it_does_not_take(emulator):
    x = torch.zeros(1, 1, 8192, dtype=BF16)
    with pytest.raises(RefusedError, match="rms_norm: on Ascend hidden must be at most 7680, got 8192"):
        emulator.run("rms_norm", "RmsNormParams", rms_norm_values(x, x, x[0, 0], False))
    values = rms_norm_values(x, x, x[0, 0], False) | {"dtype": torch.float32}
    with pytest.raises(RefusedError, match="rms_norm: on Ascend x must be bfloat16, got float32"):
        emulator.run("rms_norm", "RmsNormParams", values)
