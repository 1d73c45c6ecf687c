from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import Activation, reference
from ops.compare import POISON, assert_close_to_truth, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
E4M3 = torch.float8_e4m3fn
SCALE = 2.0


def randn(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def random_plan(dims: dict[str, int], device: torch.device, rng: torch.Generator) -> tuple:
    """topk_ids [num_tokens, topk] with distinct experts per token, and their plan."""
    scores = torch.rand(dims["num_tokens"], dims["num_experts"], generator=rng)
    topk_ids = scores.argsort(1)[:, : dims["topk"]].int().to(device)
    return topk_ids, ops.moe_plan(topk_ids, dims["first_expert"], dims["num_local_experts"])


def random_weight(rng: torch.Generator, shape: tuple[int, ...], kind: torch.dtype, device: torch.device):
    """Expert weight of type ``kind`` and its scales, None unless e4m3."""
    weight = randn(rng, *shape) * shape[-1] ** -0.5
    if kind != E4M3:
        return weight.to(kind).to(device), None
    blocks = (shape[0], -(-shape[1] // 128), -(-shape[2] // 128))
    scale = 0.5 + torch.rand(blocks, generator=rng)
    return (weight.clamp(-4, 4) * 64).to(E4M3).to(device), (scale / 64).to(device)


def weight_kind(dtype: torch.dtype, fp8: bool) -> torch.dtype:
    return E4M3 if fp8 else dtype


# Router


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("moe", "moe_router"))
def test_moe_router(dims, dtype, with_bias, device, rng):
    num_experts, topk = dims["num_experts"], dims["topk"]
    x = randn(rng, dims["num_tokens"], dims["hidden"], dtype=dtype).to(device)
    gate_weight = (randn(rng, num_experts, dims["hidden"]) * dims["hidden"] ** -0.5).to(device)
    bias = (0.3 * randn(rng, num_experts)).to(device) if with_bias else None
    ids, weights = ops.moe_router(strided(x), gate_weight, bias, topk, SCALE)
    true_ids, true_weights = reference.moe_router(x.double(), gate_weight, bias, topk, SCALE)
    score = torch.sigmoid(x.double() @ gate_weight.double().T) + (bias if with_bias else 0)
    ranked = score.sort(dim=1, descending=True).values[:, : topk + 1]
    # Where neighbours in rank are nearer than fp32 resolves, either order is right.
    clear = (ranked[:, :-1] - ranked[:, 1:] > 1e-5).all(1).cpu()
    assert clear.float().mean() > 0.9 or dims["num_tokens"] == 0
    assert_equal(ids.cpu()[clear], true_ids.cpu()[clear], name="topk_ids")
    same = reference.moe_router(x.float(), gate_weight, bias, topk, SCALE)[1]
    assert_close_to_truth(weights[clear], true_weights[clear], same[clear], name="topk_weights")


def test_moe_router_ties_go_to_the_lower_id(device):
    # Small integers: every logit is exact, whatever the order of the sum.
    x = torch.ones(3, 40, device=device)
    gate_weight = torch.zeros(70, 40, device=device)
    gate_weight[[7, 30, 31, 69]] = 1 / 32
    ids, weights = ops.moe_router(x, gate_weight, None, 6, 1.0)
    assert_equal(ids, torch.tensor([[7, 30, 31, 69, 0, 1]] * 3, dtype=torch.int32))
    bias = torch.zeros(70, device=device)
    bias[50] = 1.0
    ids, biased = ops.moe_router(x, gate_weight, bias, 6, 1.0)
    assert_equal(ids, torch.tensor([[50, 7, 30, 31, 69, 0]] * 3, dtype=torch.int32))
    assert_equal(biased[:, 1], biased[:, 2])
    # The bias chooses, but does not weigh: expert 50 weighs as much as expert 0.
    assert_equal(biased[:, 0], biased[:, 5])
    torch.testing.assert_close(weights.sum(1).cpu(), torch.ones(3))


def test_moe_router_masked_and_extreme_scores(device):
    x = torch.tensor([[1.0], [100.0]], device=device)
    gate_weight = torch.tensor([[1.0], [2.0], [-1.0], [0.5]], device=device)
    bias = torch.tensor([0.0, -torch.inf, 0.0, 0.0], device=device)
    ids, weights = ops.moe_router(x, gate_weight, bias, 4, 1.0)
    assert ids[:, 3].tolist() == [1, 1], "an expert masked by -inf comes last"
    assert weights.isfinite().all()
    # All sigmoids of -1000 are 0 in fp32: no 0 / 0, the experts add nothing.
    ids, weights = ops.moe_router(torch.tensor([[-1000.0]], device=device), gate_weight[:2], None, 2, 1.0)
    assert ids.tolist() == [[0, 1]]
    assert weights.tolist() == [[0.0, 0.0]]


def test_moe_router_of_a_nan_token_is_safe_and_visible(device, rng):
    x, gate_weight = randn(rng, 5, 32).to(device), randn(rng, 8, 32).to(device)
    clean_ids, clean_weights = ops.moe_router(x, gate_weight, None, 3, 1.0)
    x[2, 7] = POISON
    ids, weights = ops.moe_router(x, gate_weight, None, 3, 1.0)
    assert ids[2].tolist() == [0, 1, 2]
    assert weights[2].isnan().all()
    others = torch.tensor([0, 1, 3, 4])
    assert_equal(ids.cpu()[others], clean_ids.cpu()[others])
    assert_equal(weights.cpu()[others], clean_weights.cpu()[others])


# Plan


@pytest.mark.parametrize("dims", load("moe", "moe_plan"))
def test_moe_plan(dims, device, rng):
    topk_ids, plan = random_plan(dims, device, rng)
    expected = reference.moe_plan(topk_ids, dims["first_expert"], dims["num_local_experts"])
    num_local = int(expected[0][-1])
    assert_equal(plan[0], expected[0], name="expert_offsets")
    assert_equal(plan[1][:num_local], expected[1][:num_local], name="sorted_rows")
    assert_equal(plan[2], expected[2], name="row_positions")
    rows = plan[1][:num_local].long().cpu()
    assert_equal(plan[2].cpu()[rows], torch.arange(num_local, dtype=torch.int32), name="inverse")


def test_moe_plan_is_stable_and_leaves_the_tail_alone(device):
    topk_ids = torch.tensor([[3, 1], [1, 9], [-1, 3], [1, 3]], dtype=torch.int32, device=device)
    offsets = torch.full((4,), -7, dtype=torch.int32, device=device)
    rows, positions = (torch.full((8,), -7, dtype=torch.int32, device=device) for _ in range(2))
    tensors = (offsets, rows, positions, topk_ids)
    scratch = torch.empty(0, dtype=torch.int8)
    if device.type != "cpu":
        size = torch.ops.mmx.moe_plan_workspace(*tensors, 1)
        scratch = torch.empty(size, dtype=torch.int8, device=device)
    torch.ops.mmx.moe_plan(*tensors, scratch, 1)
    assert offsets.tolist() == [0, 3, 3, 6]
    assert rows.tolist() == [1, 2, 6, 0, 5, 7, -7, -7]
    assert positions.tolist() == [3, 0, 1, -1, -1, 4, 2, 5]


@pytest.mark.parametrize("num_shared", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("moe", "moe_router_plan"))
def test_moe_router_plan(dims, dtype, num_shared, device, rng):
    num_experts, topk, first = dims["num_experts"], dims["topk"], dims["first_expert"]
    x = strided(randn(rng, dims["num_tokens"], dims["hidden"], dtype=dtype).to(device), pad=8)
    gate_weight = (randn(rng, num_experts, dims["hidden"]) * dims["hidden"] ** -0.5).to(device)
    router = (gate_weight, (0.3 * randn(rng, num_experts)).to(device))
    local = dims["num_local_experts"] + num_shared
    ids, weights, *plan = ops.moe_router_plan(x, *router, topk + num_shared, SCALE, first, local, num_shared)
    alone = ops.moe_router(x, *router, topk, SCALE)
    assert_equal(ids[:, :topk], alone[0], name="topk_ids")
    assert_equal(weights[:, :topk], alone[1], name="topk_weights")
    shared = torch.arange(num_experts, num_experts + num_shared, dtype=torch.int32)
    assert_equal(ids[:, topk:], shared.expand(x.shape[0], -1), name="shared ids")
    assert (weights[:, topk:] == 1).all()
    expected = reference.moe_plan(ids, first, local)
    num_local = int(expected[0][-1])
    for name, one, other in zip(("offsets", "rows", "positions"), plan, expected, strict=True):
        count = num_local if name == "rows" else None
        assert_equal(one[:count], other[:count], name=name)
    truth = reference.moe_router_plan(x, *router, topk + num_shared, SCALE, first, local, num_shared)
    assert [t.shape for t in truth] == [t.shape for t in (ids, weights, *plan)]


def test_moe_router_plan_counts_shared_experts_in_topk(device):
    x, gate_weight = torch.zeros(2, 8, device=device), torch.zeros(4, 8, device=device)
    with pytest.raises(
        RuntimeError, match="moe_router_plan: topk must be between 1 and num_experts=4, got 0"
    ):
        ops.moe_router_plan(x, gate_weight, None, 2, 1.0, 0, 6, 2)


# Grouped GEMMs


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("fp8", [False, True], ids=["wide", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("moe", "moe_gate_up"))
def test_moe_gate_up(dims, dtype, fp8, activation, device, rng):
    _, (offsets, rows, _) = random_plan(dims, device, rng)
    num_local = int(offsets[-1])
    rows[num_local:] = torch.iinfo(torch.int32).max
    x = 2 * randn(rng, dims["num_tokens"], dims["hidden"]).to(dtype).to(device)
    shape = (dims["num_local_experts"], 2 * dims["inter"], dims["hidden"])
    weight, scale = random_weight(rng, shape, weight_kind(dtype, fp8), device)
    args = (weight, scale, offsets, rows, activation)
    out = ops.moe_gate_up(strided(x), *args)
    truth = reference.moe_gate_up(x.double(), *args)
    same = reference.moe_gate_up(x, *args)
    assert_close_to_truth(out[:num_local], truth[:num_local], same[:num_local])


@pytest.mark.parametrize("fp8", [False, True], ids=["wide", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("moe", "moe_down"))
def test_moe_down(dims, dtype, fp8, device, rng):
    _, (offsets, _, _) = random_plan(dims, device, rng)
    num_local = int(offsets[-1])
    x = randn(rng, dims["num_tokens"] * dims["topk"], dims["inter"], dtype=dtype).to(device)
    x[num_local:] = POISON
    shape = (dims["num_local_experts"], dims["hidden"], dims["inter"])
    weight, scale = random_weight(rng, shape, weight_kind(dtype, fp8), device)
    out = ops.moe_down(x, weight, scale, offsets)
    truth = reference.moe_down(x.double(), weight, scale, offsets)
    same = reference.moe_down(x, weight, scale, offsets)
    assert_close_to_truth(out[:num_local], truth[:num_local], same[:num_local])


@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("moe", "moe_combine"))
def test_moe_combine(dims, dtype, with_shared, device, rng):
    num_tokens, topk, hidden = dims["num_tokens"], dims["topk"], dims["hidden"]
    _, (offsets, _, positions) = random_plan(dims, device, rng)
    x = randn(rng, num_tokens * topk, hidden, dtype=dtype).to(device)
    x[int(offsets[-1]) :] = POISON
    weights = torch.rand(num_tokens, topk, generator=rng).to(device)
    shared = randn(rng, num_tokens, hidden, dtype=dtype).to(device) if with_shared else None
    out = ops.moe_combine(x, positions, weights, shared)
    truth = reference.moe_combine(x.double(), positions, weights, shared)
    assert_close_to_truth(out, truth, reference.moe_combine(x, positions, weights, shared))
    into = strided(torch.empty_like(out))
    ops.moe_combine(x, positions, weights, strided(shared) if with_shared else None, out=into)
    assert_equal(into, out)


# The whole layer


def layer(x: torch.Tensor, weights: dict, activation: Activation = Activation.SWIGLU_OAI) -> torch.Tensor:
    gate_weight = weights["gate"]
    ids, topk_weights = ops.moe_router(x, gate_weight, None, 3, SCALE)
    offsets, rows, positions = ops.moe_plan(ids, 0, gate_weight.shape[0])
    hidden = ops.moe_gate_up(x, *weights["gate_up"], offsets, rows, activation)
    return ops.moe_combine(ops.moe_down(hidden, *weights["down"], offsets), positions, topk_weights, x)


def layer_weights(rng, num_experts, hidden, inter, kind, device) -> dict:
    return {
        "gate": (randn(rng, num_experts, hidden) * hidden**-0.5).to(device),
        "gate_up": random_weight(rng, (num_experts, 2 * inter, hidden), kind, device),
        "down": random_weight(rng, (num_experts, hidden, inter), kind, device),
    }


@pytest.mark.parametrize("fp8", [False, True], ids=["wide", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch(dtype, fp8, device, rng):
    # More than one chunk of k, odd tiles everywhere, and more rows per expert than one block of rows.
    weights = layer_weights(rng, 4, 1300, 61, weight_kind(dtype, fp8), device)
    x = randn(rng, 300, 1300, dtype=dtype).to(device)
    whole = layer(x, weights)
    for begin, end in ((0, 1), (1, 3), (3, 10), (10, 77), (77, 300)):
        assert_equal(layer(x[begin:end], weights), whole[begin:end], name=f"rows {begin} to {end}")


@pytest.mark.parametrize("fp8", [False, True], ids=["wide", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_does_not_depend_on_threads_and_repeats(dtype, fp8, device, rng):
    weights = layer_weights(rng, 8, 256, 96, weight_kind(dtype, fp8), device)
    x = randn(rng, 100, 256, dtype=dtype).to(device)
    outs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        outs.append(layer(x, weights))
    torch.set_num_threads(1)
    assert_equal(outs[1], outs[0])
    assert_equal(outs[2], outs[0])


def test_ranks_of_experts_sum_to_the_whole(device, rng):
    weights = layer_weights(rng, 8, 64, 32, torch.float32, device)
    x = randn(rng, 40, 64).to(device)
    ids, topk_weights = ops.moe_router(x, weights["gate"], None, 3, SCALE)
    (gate_up, _), (down, _) = weights["gate_up"], weights["down"]

    def part(first: int, count: int) -> torch.Tensor:
        offsets, rows, positions = ops.moe_plan(ids, first, count)
        hidden = ops.moe_gate_up(x, gate_up[first : first + count], None, offsets, rows, Activation.SILU)
        out = ops.moe_down(hidden, down[first : first + count], None, offsets)
        return ops.moe_combine(out, positions, topk_weights)

    torch.testing.assert_close(part(0, 3) + part(3, 1) + part(4, 4), part(0, 8), rtol=1e-5, atol=1e-5)


# Faults


def test_faults_are_named(device):
    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    with pytest.raises(RuntimeError, match=r"moe_router: gate_weight must be \[num_experts=4, hidden=8\]"):
        ops.moe_router(zeros(2, 8), zeros(4, 7), None, 2, 1.0)
    with pytest.raises(RuntimeError, match="topk must be between 1 and num_experts=4, got 5"):
        ops.moe_router(zeros(2, 8), zeros(4, 8), None, 5, 1.0)
    with pytest.raises(RuntimeError, match="moe_router: bias must be float32, got bfloat16"):
        ops.moe_router(zeros(2, 8), zeros(4, 8), zeros(4, dtype=torch.bfloat16), 2, 1.0)
    with pytest.raises(RuntimeError, match="moe_plan: first_expert must be at least 0, got -1"):
        ops.moe_plan(zeros(2, 2, dtype=torch.int32), -1, 4)
    offsets, rows = zeros(5, dtype=torch.int32), zeros(4, dtype=torch.int32)
    with pytest.raises(
        RuntimeError, match=r"weight must be \[num_local_experts=4, 6, hidden=8\], got \[4, 6, 7"
    ):
        ops.moe_gate_up(zeros(2, 8), zeros(4, 6, 7), None, offsets, rows, Activation.SILU)
    with pytest.raises(RuntimeError, match="weight_scale must be given exactly when weight is float8_e4m3fn"):
        ops.moe_gate_up(zeros(2, 8), zeros(4, 6, 8, dtype=E4M3), None, offsets, rows, Activation.SILU)
    with pytest.raises(RuntimeError, match=r"moe_down: expert_offsets must be \[5\], got \[4\]"):
        ops.moe_down(zeros(4, 3), zeros(4, 8, 3), None, zeros(4, dtype=torch.int32))
    with pytest.raises(RuntimeError, match=r"moe_down: weight_scale must be \[num_local_experts=4, 1, 2\]"):
        ops.moe_down(zeros(4, 200), zeros(4, 8, 200, dtype=E4M3), zeros(4, 1, 1), offsets)
    with pytest.raises(RuntimeError, match=r"moe_combine: x must be \[4, hidden=8\], got \[3, 8\]"):
        ops.moe_combine(zeros(3, 8), rows, zeros(2, 2), out=zeros(2, 8))


def test_opcheck(device, rng):
    def scratch(op: str, *args) -> torch.Tensor:
        size = 0 if device.type == "cpu" else getattr(torch.ops.mmx, f"{op}_workspace")(*args)
        return torch.empty(size, dtype=torch.int8, device=device)

    def check(op: str, *args) -> None:
        torch.library.opcheck(getattr(torch.ops.mmx, op).default, args)

    weights = layer_weights(rng, 4, 24, 8, torch.float32, device)
    x, hidden, down = (randn(rng, *shape).to(device) for shape in ((4, 24), (8, 8), (8, 24)))
    ids, topk_weights = ops.moe_router(x, weights["gate"], None, 2, SCALE)
    plan = ops.moe_plan(ids, 0, 4)
    router = (ids, topk_weights, x, weights["gate"], None)
    check("moe_router", *router, scratch("moe_router", *router, SCALE), SCALE)
    check("moe_plan", *plan, ids, scratch("moe_plan", *plan, ids, 0), 0)
    gate_up = (hidden, x, *weights["gate_up"], *plan[:2])
    act = (1, 1.702, 7.0)
    check("moe_gate_up", *gate_up, scratch("moe_gate_up", *gate_up, *act), *act)
    moe_down = (down, hidden, *weights["down"], plan[0])
    check("moe_down", *moe_down, scratch("moe_down", *moe_down))
    check("moe_combine", torch.empty_like(x), down, plan[2], topk_weights, x)
