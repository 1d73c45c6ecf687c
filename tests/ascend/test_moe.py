"""AscendC grouped GEMMs on the emulator: the shared cases against the shared references."""

from __future__ import annotations

import pytest
import torch

from ascend.emulated import RefusedError
from cases import load
from mmx.ops import Activation, reference
from ops.compare import POISON, assert_close_to_truth, strided

BF16 = torch.bfloat16
ALPHA, LIMIT = 1.702, 7.0


def cases(op: str) -> list:
    return [c for c in load("moe", op) if c.values[0]["num_tokens"]]


def plan(dims, rng):
    scores = torch.rand(dims["num_tokens"], dims["num_experts"], generator=rng)
    ids = scores.argsort(1)[:, : dims["topk"]].int()
    return reference.moe_plan(ids, dims["first_expert"], dims["num_local_experts"])


def gate_up_values(out, x, weight, offsets, rows, activation):
    return {
        "out": out,
        "x": x,
        "weight": weight,
        "expert_offsets": offsets,
        "sorted_rows": rows,
        "num_tokens": x.shape[0],
        "topk": rows.numel() // x.shape[0],
        "num_local_experts": weight.shape[0],
        "hidden": weight.shape[2],
        "inter": weight.shape[1] // 2,
        "x_stride": x.stride(0),
        "activation": int(activation),
        "alpha": ALPHA,
        "limit": LIMIT,
        "dtype": BF16,
        "weight_dtype": weight.dtype,
    }


def down_values(out, x, weight, offsets):
    return {
        "out": out,
        "x": x,
        "weight": weight,
        "expert_offsets": offsets,
        "num_rows": x.shape[0],
        "num_local_experts": weight.shape[0],
        "hidden": weight.shape[1],
        "inter": weight.shape[2],
        "dtype": BF16,
        "weight_dtype": weight.dtype,
    }


def check_gate_up(x, weight, offsets, rows, activation, run_all):
    num_local = int(offsets[-1])
    rows[num_local:] = torch.iinfo(torch.int32).max

    def make():
        out = torch.full((rows.numel(), weight.shape[1] // 2), POISON, dtype=BF16)
        return gate_up_values(out, strided(x), weight, offsets, rows, activation), [out]

    (out,) = run_all("moe_gate_up", "MoeGateUpParams", make)
    args = (weight, None, offsets, rows, activation, ALPHA, LIMIT)
    truth = reference.moe_gate_up(x.double(), *args)
    assert_close_to_truth(out[:num_local], truth[:num_local], reference.moe_gate_up(x, *args)[:num_local])
    assert out[num_local:].isnan().all()
    return out


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("dims", cases("moe_gate_up"))
def test_moe_gate_up(dims, activation, run_all, rng):
    offsets, rows, _ = plan(dims, rng)
    x = (2 * torch.randn(dims["num_tokens"], dims["hidden"], generator=rng)).to(BF16)
    shape = (dims["num_local_experts"], 2 * dims["inter"], dims["hidden"])
    weight = (torch.randn(shape, generator=rng) * dims["hidden"] ** -0.5).to(BF16)
    check_gate_up(x, weight, offsets, rows, activation, run_all)


@pytest.mark.parametrize("dims", cases("moe_down"))
def test_moe_down(dims, run_all, rng):
    offsets, _, _ = plan(dims, rng)
    num_local = int(offsets[-1])
    x = torch.randn(dims["num_tokens"] * dims["topk"], dims["inter"], generator=rng).to(BF16)
    x[num_local:] = POISON
    shape = (dims["num_local_experts"], dims["hidden"], dims["inter"])
    weight = (torch.randn(shape, generator=rng) * dims["inter"] ** -0.5).to(BF16)

    def make():
        out = torch.full((x.shape[0], dims["hidden"]), POISON, dtype=BF16)
        return down_values(out, x, weight, offsets), [out]

    (out,) = run_all("moe_down", "MoeDownParams", make)
    truth = reference.moe_down(x.double(), weight, None, offsets)
    same = reference.moe_down(x, weight, None, offsets)
    assert_close_to_truth(out[:num_local], truth[:num_local], same[:num_local])
    assert out[num_local:].isnan().all()


def combine_values(out, x, positions, weights, shared):
    values = {
        "out": out,
        "x": x,
        "row_positions": positions,
        "topk_weights": weights,
        "num_tokens": weights.shape[0],
        "topk": weights.shape[1],
        "hidden": x.shape[1],
        "out_stride": out.stride(0),
        "dtype": BF16,
    }
    return values if shared is None else values | {"shared": shared, "shared_stride": shared.stride(0)}


@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize("dims", cases("moe_combine"))
def test_moe_combine(dims, with_shared, run_all, rng):
    offsets, _, positions = plan(dims, rng)
    x = torch.randn(positions.numel(), dims["hidden"], generator=rng).to(BF16)
    x[int(offsets[-1]) :] = POISON
    weights = torch.rand(dims["num_tokens"], dims["topk"], generator=rng)
    shape = (dims["num_tokens"], dims["hidden"])
    shared = torch.randn(shape, generator=rng).to(BF16) if with_shared else None

    def make():
        out = strided(torch.zeros(shape, dtype=BF16))
        added = None if shared is None else strided(shared)
        return combine_values(out, x, positions, weights, added), [out]

    (out,) = run_all("moe_combine", "MoeCombineParams", make)
    args = (positions, weights, shared)
    assert_close_to_truth(out, reference.moe_combine(x.double(), *args), reference.moe_combine(x, *args))


COUNTS = {
    "one expert has all": [0, 129, 0, 0],
    "borders of a tile": [127, 128, 129, 1],
    "borders of a fractal": [15, 16, 17, 0],
    "none": [0, 0, 0, 0],
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_rows_per_expert(counts, run_all, rng):
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    num_rows = max(1, int(offsets[-1]))
    x = torch.randn(num_rows, 48, generator=rng).to(BF16)
    rows = torch.randperm(num_rows, generator=rng).int()
    weight = (torch.randn(4, 2 * 40, 48, generator=rng) * 0.2).to(BF16)
    check_gate_up(x, weight, offsets, rows, Activation.SWIGLU_OAI, run_all)


def test_refuses_fp8_weights(emulator):
    x, weight = torch.zeros(1, 16, dtype=BF16), torch.zeros(1, 16, 16).to(torch.float8_e4m3fn)
    values = down_values(x.clone(), x, weight, torch.tensor([0, 1], dtype=torch.int32))
    with pytest.raises(RefusedError, match=r"moe_down: on Ascend weight must be bfloat16 \(expand fp8 with"):
        emulator.run("moe_down", "MoeDownParams", values)


GATES = [
    0.0,
    1.0,
    -1.0,
    6.96875,
    7.0,
    7.03125,
    -7.0,
    -52.0,
    -60.0,
    100.0,
    -1e4,
    1e30,
    -1e30,
    3e-39,
    -0.0,
    0.5,
]


@pytest.mark.parametrize("activation", list(Activation))
def test_activation_at_its_edges(activation, run_all):
    """Every pair of gate and up out of GATES: clamps, overflow of exp, signed zero.

    Products are exact: a token picks one column of the weights.
    """
    count = len(GATES)
    x = torch.eye(16, dtype=BF16)
    weight = torch.zeros(1, 2 * count * count, 16, dtype=BF16)
    pairs = torch.cartesian_prod(torch.tensor(GATES), torch.tensor(GATES)).to(BF16)
    weight[0, : count * count, 3], weight[0, count * count :, 3] = pairs[:, 0], pairs[:, 1]
    offsets, rows = torch.tensor([0, 16], dtype=torch.int32), torch.arange(16, dtype=torch.int32)
    out = check_gate_up(x, weight, offsets, rows, activation, run_all)
    truth = reference.moe_gate_up(x.double(), weight, None, offsets, rows, activation, ALPHA, LIMIT)
    # Rounded to bf16 the largest products are infinite, here as there.
    torch.testing.assert_close(out[3].double(), truth[3].to(BF16).double(), rtol=2**-8, atol=1e-37)
