from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import Activation, reference
from ops.compare import POISON, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
E4M3 = torch.float8_e4m3fn
# Tensor cores keep about 14 bits of a sum of e4m3 products.
SUM_ERROR = 2**-12


def quantized(rng: torch.Generator, device: torch.device, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(shape, generator=rng) * torch.rand(shape[0], 1, generator=rng).exp()
    codes, scale = reference.fp8_quantize(x)
    return codes.to(device), scale.to(device)


def fp8_weight(rng: torch.Generator, device: torch.device, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = (torch.randn(shape, generator=rng).clamp(-4, 4) * 64).to(E4M3)
    blocks = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scale = (0.5 + torch.rand(blocks, generator=rng)) / 64 * shape[-1] ** -0.5
    return weight.to(device), scale.to(device)


def plan_of(dims: dict[str, int], device: torch.device, rng: torch.Generator):
    scores = torch.rand(dims["num_tokens"], dims["num_experts"], generator=rng)
    topk_ids = scores.argsort(1)[:, : dims["topk"]].int().to(device)
    return ops.moe_plan(topk_ids, dims["first_expert"], dims["num_local_experts"])


def values(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return codes.double() * scale.double().repeat_interleave(128, 1)[:, : codes.shape[1]]


def assert_sums(out: torch.Tensor, truth: torch.Tensor, name: str = "out") -> None:
    """Within the tensor cores' error of a sum and the rounding of the result."""
    if out.numel() == 0:
        return
    rounding = 2**-8 if out.dtype == torch.bfloat16 else 2**-20
    error = (out.double().cpu() - truth.double().cpu()).abs()
    budget = SUM_ERROR * truth.double().abs().max().cpu() + rounding * truth.double().abs().cpu()
    assert not error.isnan().any(), f"{name}: NaN"
    assert (error <= budget).all(), f"{name}: error {error.max():.3g}, largest value {truth.abs().max():.3g}"


# Quantiser


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("fp8", "fp8_quantize"))
def test_fp8_quantize(dims, dtype, device, rng):
    x = torch.randn(dims["m"], dims["k"], generator=rng)
    x *= torch.randn(dims["m"], 1, generator=rng).mul(3).exp()
    x = x.to(dtype).to(device)
    codes, scale = ops.fp8_quantize(strided(x, pad=8))
    expected, expected_scale = reference.fp8_quantize(x)
    assert_equal(scale, expected_scale, name="scale")
    assert_equal(codes.float(), expected.float(), name="codes")
    assert_equal(ops.fp8_quantize(strided(x))[0].float(), expected.float(), name="codes of odd rows")


def test_fp8_quantize_of_zeros_and_broken_values(device):
    x = torch.zeros(3, 256, device=device)
    x[1, 7], x[2, 9], x[2, 10] = 1e-30, POISON, -3.0
    codes, scale = (t.cpu() for t in ops.fp8_quantize(x))
    assert (codes[:2].float() == 0).all()
    assert (scale.isfinite() & (scale > 0)).all()
    assert codes[2, 9].float().isnan()
    assert codes[2, 10].float() == -448
    assert codes[2].float().isnan().sum() == 1


# Microscaling


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("fp8", "mxfp8_dequant"))
def test_mxfp8_dequant(dims, dtype, device):
    rows, cols = dims["m"], dims["k"]
    groups = -(-cols // 32)
    codes = (torch.arange(rows * cols) * 37 % 256).to(torch.uint8).view(E4M3).view(rows, cols).to(device)
    exponents = (torch.arange(rows * groups) * 11 % 256).to(torch.uint8).view(rows, groups).to(device)
    out = ops.mxfp8_dequant(codes, exponents, dtype)
    assert_equal(out, reference.mxfp8_dequant(codes, exponents, dtype))


# Products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("fp8", "fp8_linear"))
def test_fp8_linear(dims, dtype, device, rng):
    x, x_scale = quantized(rng, device, dims["m"], dims["k"])
    weight = fp8_weight(rng, device, dims["n"], dims["k"])
    out = ops.fp8_linear(x, x_scale, *weight, dtype)
    truth = reference.fp8_linear(x, x_scale, *weight, torch.float64)
    assert_sums(out, truth)
    into = strided(torch.empty_like(out), pad=8)
    assert_equal(ops.fp8_linear(x, x_scale, *weight, dtype, out=into), out)


@pytest.mark.parametrize(("n", "k"), [(384, 640), (40, 100)])
def test_fp8_linear_row_is_the_same_in_every_batch(n, k, device, rng):
    x, x_scale = quantized(rng, device, 200, k)
    weight = fp8_weight(rng, device, n, k)
    whole = ops.fp8_linear(x, x_scale, *weight, torch.bfloat16)
    for begin, end in ((0, 1), (1, 9), (9, 60), (60, 200), (5, 200)):
        part = ops.fp8_linear(x[begin:end], x_scale[begin:end], *weight, torch.bfloat16)
        assert_equal(part, whole[begin:end], name=f"rows {begin} to {end}")


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("dims", load("fp8", "fp8_moe_gate_up"))
def test_fp8_moe_gate_up(dims, activation, device, rng):
    offsets, rows, _ = plan_of(dims, device, rng)
    num_local = int(offsets[-1])
    rows[num_local:] = torch.iinfo(torch.int32).max
    x, x_scale = quantized(rng, device, dims["num_tokens"], dims["hidden"])
    shape = (dims["num_local_experts"], 2 * dims["inter"], dims["hidden"])
    args = (x, x_scale, *fp8_weight(rng, device, *shape), offsets, rows, activation)
    out, scale = ops.fp8_moe_gate_up(*args)
    rows[num_local:] = 0
    expected, expected_scale = reference.fp8_moe_gate_up(*args)
    if num_local == 0:
        return
    largest = (expected_scale[:num_local] * 448).max()
    error = (scale - expected_scale)[:num_local].abs().max()
    assert error <= 4 * SUM_ERROR * largest / 448
    # Sums that differ may round to neighbouring codes: a step of the format is 2^-3 of the value.
    ours, truth = (
        values(c[:num_local], s[:num_local]) for c, s in ((out, scale), (expected, expected_scale))
    )
    assert ((ours - truth).abs() <= 2**-3 * truth.abs() + 8 * SUM_ERROR * largest).all()
    assert (ours - truth).norm() <= 0.01 * truth.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("fp8", "fp8_moe_down"))
def test_fp8_moe_down(dims, dtype, device, rng):
    offsets, _, _ = plan_of(dims, device, rng)
    num_local = int(offsets[-1])
    x, x_scale = quantized(rng, device, dims["num_tokens"] * dims["topk"], dims["inter"])
    x_scale[num_local:] = POISON
    shape = (dims["num_local_experts"], dims["hidden"], dims["inter"])
    weight = fp8_weight(rng, device, *shape)
    out = ops.fp8_moe_down(x, x_scale, *weight, offsets, dtype)
    truth = reference.fp8_moe_down(x, x_scale, *weight, offsets, torch.float64)
    assert_sums(out[:num_local], truth[:num_local])


# The whole layer


def layer(x: torch.Tensor, topk_ids: torch.Tensor, weights: dict, first: int = 0) -> torch.Tensor:
    num_local = weights["down"][0].shape[0]
    offsets, rows, positions = ops.moe_plan(topk_ids, first, num_local)
    inner = ops.fp8_moe_gate_up(*ops.fp8_quantize(x), *weights["gate_up"], offsets, rows, Activation.SILU)
    out = ops.fp8_moe_down(*inner, *weights["down"], offsets, x.dtype)
    return ops.moe_combine(out, positions, weights["topk"][: x.shape[0]])


def layer_weights(rng, device, num_experts: int, hidden: int, inter: int, num_tokens: int, topk: int) -> dict:
    return {
        "gate_up": fp8_weight(rng, device, num_experts, 2 * inter, hidden),
        "down": fp8_weight(rng, device, num_experts, hidden, inter),
        "topk": torch.rand(num_tokens, topk, generator=rng).to(device),
    }


def routing(rng, num_tokens: int, num_experts: int, topk: int, *, everyone: int = -1, nobody: int = 0):
    """Random distinct experts; ``everyone`` is chosen by every token, the last ``nobody`` by none."""
    scores = torch.rand(num_tokens, num_experts, generator=rng)
    if everyone >= 0:
        scores[:, everyone] = 2
    scores[:, num_experts - nobody :] = -1
    return scores.argsort(1, descending=True)[:, :topk].int()


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(("hidden", "inter"), [(256, 128), (72, 40)])
def test_a_row_does_not_depend_on_its_batch(hidden, inter, skewed, device, rng):
    weights = layer_weights(rng, device, 6, hidden, inter, 600, 2)
    ids = routing(rng, 600, 6, 2, everyone=2 if skewed else -1, nobody=3 * skewed).to(device)
    x = torch.randn(600, hidden, generator=rng).bfloat16().to(device)
    whole = layer(x, ids, weights)
    for begin, end in ((0, 1), (1, 3), (3, 40), (40, 170), (170, 600)):
        part = weights | {"topk": weights["topk"][begin:end]}
        out = layer(x[begin:end], ids[begin:end], part)
        assert_equal(out, whole[begin:end], name=f"rows {begin} to {end}")
    assert_equal(layer(x, ids, weights), whole, name="again")


def test_layer_does_not_depend_on_threads(rng):
    device = torch.device("cpu")
    weights = layer_weights(rng, device, 8, 256, 96, 100, 3)
    ids = routing(rng, 100, 8, 3)
    x = torch.randn(100, 256, generator=rng)
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outs.append(layer(x, ids, weights))
    torch.set_num_threads(1)
    assert_equal(outs[1], outs[0])


def test_ranks_of_experts_sum_to_the_whole(device, rng):
    weights = layer_weights(rng, device, 8, 128, 128, 40, 3)
    x, ids = torch.randn(40, 128, generator=rng).to(device), routing(rng, 40, 8, 3).to(device)

    def part(first: int, count: int) -> torch.Tensor:
        cut = {key: tuple(t[first : first + count] for t in weights[key]) for key in ("gate_up", "down")}
        return layer(x, ids, cut | {"topk": weights["topk"]}, first)

    torch.testing.assert_close(part(0, 3) + part(3, 1) + part(4, 4), part(0, 8), rtol=1e-5, atol=1e-5)


def test_quantised_layer_is_near_the_wide_one(device, rng):
    """The cost of e4m3 rows (weights are the same): about 2 % of the result's norm."""
    weights = layer_weights(rng, device, 8, 256, 128, 64, 3)
    x, ids = torch.randn(64, 256, generator=rng).to(device), routing(rng, 64, 8, 3).to(device)
    plan = reference.moe_plan(ids, 0, 8)
    inner = reference.moe_gate_up(x, *weights["gate_up"], *plan[:2], Activation.SILU)
    down = reference.moe_down(inner, *weights["down"], plan[0])
    truth = reference.moe_combine(down, plan[2], weights["topk"])
    out = layer(x, ids, weights)
    assert 1e-4 < (out - truth).norm() / truth.norm() < 0.06


# Faults


def test_faults_are_named(device, rng):
    x, x_scale = quantized(rng, device, 4, 256)
    weight, weight_scale = fp8_weight(rng, device, 128, 256)
    with pytest.raises(RuntimeError, match=r"fp8_linear: x_scale must be \[m=4, 2\], got \[4, 1\]"):
        ops.fp8_linear(x, x_scale[:, :1].contiguous(), weight, weight_scale, torch.float32)
    with pytest.raises(RuntimeError, match="fp8_linear: weight must be float8_e4m3fn, got float32"):
        ops.fp8_linear(x, x_scale, weight.float(), weight_scale, torch.float32)
    with pytest.raises(RuntimeError, match="fp8_quantize: x must be float32 or bfloat16, got float8_e4m3fn"):
        ops.fp8_quantize(x)
    with pytest.raises(RuntimeError, match="mxfp8_dequant: scale must be uint8, got float32"):
        ops.mxfp8_dequant(x, torch.ones(4, 8, device=device), torch.float32)
    offsets = torch.zeros(3, dtype=torch.int32, device=device)
    experts, scales = fp8_weight(rng, device, 2, 128, 256)
    with pytest.raises(RuntimeError, match=r"fp8_moe_down: expert_offsets must be \[3\], got \[2\]"):
        ops.fp8_moe_down(x, x_scale, experts, scales, offsets[:2], torch.float32)
    rows, narrow = torch.zeros(8, dtype=torch.int32, device=device), x[:, :128].contiguous()
    with pytest.raises(
        RuntimeError, match=r"fp8_moe_gate_up: weight must be \[num_local_experts=2, 128, 128\]"
    ):
        ops.fp8_moe_gate_up(narrow, x_scale, experts, scales, offsets, rows, Activation.SILU)


def test_opcheck(device, rng):
    x, x_scale = quantized(rng, device, 4, 128)
    weight = fp8_weight(rng, device, 128, 128)
    # Why not all: the others compare the inputs by arithmetic that torch lacks for e4m3.
    utils = ("test_faketensor", "test_autograd_registration")
    out = torch.empty(4, 128, device=device)
    for op, args in {
        "fp8_quantize": (x, x_scale, out),
        "fp8_linear": (out, x, x_scale, *weight),
        "mxfp8_dequant": (out, x, torch.full((4, 4), 127, dtype=torch.uint8, device=device)),
    }.items():
        torch.library.opcheck(getattr(torch.ops.mmx, op).default, args, test_utils=utils)
