"""Shapes that reach every tile of the grouped GEMMs and of the router: a row must not depend on its batch."""

from __future__ import annotations

import pytest
import torch

from mmx import ops
from mmx.ops import Activation, reference
from ops.compare import POISON, assert_close_to_truth, assert_equal

BF16 = torch.bfloat16
REMOTE_ROW = torch.iinfo(torch.int32).max


class Experts:
    """Random bf16 weights of ``num_experts`` and the two grouped GEMMs with them."""

    def __init__(self, rng: torch.Generator, num_experts: int, hidden: int, inter: int, device: torch.device):
        def weight(*shape: int) -> torch.Tensor:
            return (torch.randn(shape, generator=rng) * shape[-1] ** -0.5).to(BF16).to(device)

        self.num_experts = num_experts
        self.gate_up = weight(num_experts, 2 * inter, hidden)
        self.down = weight(num_experts, hidden, inter)

    def run(self, x: torch.Tensor, topk_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both results of every (token, k), in token order."""
        plan = ops.moe_plan(topk_ids, 0, self.num_experts)
        act = ops.moe_gate_up(x, self.gate_up, None, plan[0], plan[1], Activation.SWIGLU_OAI)
        out = ops.moe_down(act, self.down, None, plan[0])
        return act[plan[2].long()], out[plan[2].long()]

    def check(self, x: torch.Tensor, topk_ids: torch.Tensor) -> None:
        offsets, rows, _ = ops.moe_plan(topk_ids, 0, self.num_experts)
        args = (self.gate_up, None, offsets, rows, Activation.SWIGLU_OAI)
        act = ops.moe_gate_up(x, *args)
        assert_close_to_truth(
            act, reference.moe_gate_up(x.double(), *args), reference.moe_gate_up(x, *args), name="gate_up"
        )
        truth = reference.moe_down(act.double(), self.down, None, offsets)
        same = reference.moe_down(act, self.down, None, offsets)
        assert_close_to_truth(ops.moe_down(act, self.down, None, offsets), truth, same, name="down")


def random_ids(rng: torch.Generator, num_tokens: int, num_experts: int, topk: int) -> torch.Tensor:
    return torch.rand(num_tokens, num_experts, generator=rng).argsort(1)[:, :topk].int()


@pytest.mark.parametrize(("hidden", "inter"), [(256, 128), (320, 192)])
def test_a_row_does_not_depend_on_its_batch_or_tile(hidden, inter, device, rng):
    # Up to 350 rows per expert: several row tiles, odd and even numbers of them, and tails of weight tiles.
    experts = Experts(rng, 6, hidden, inter, device)
    x = torch.randn(700, hidden, generator=rng).to(BF16).to(device)
    ids = random_ids(rng, 700, 6, 3).to(device)
    experts.check(x, ids)
    whole = experts.run(x, ids)
    for begin, end in ((0, 1), (1, 6), (6, 60), (60, 200), (200, 440), (200, 600)):
        part = experts.run(x[begin:end], ids[begin:end])
        for name, some, all_rows in zip(("gate_up", "down"), part, whole, strict=True):
            assert_equal(some, all_rows[begin * 3 : end * 3], name=f"{name} of tokens {begin} to {end}")


@pytest.mark.parametrize("num_tokens", [3, 100, 1500])
def test_one_expert_has_every_token_and_most_have_none(num_tokens, device, rng):
    experts = Experts(rng, 40, 128, 64, device)
    ids = random_ids(rng, num_tokens, 5, 2) + 20
    ids[:, 0] = 39
    x = torch.randn(num_tokens, 128, generator=rng).to(BF16).to(device)
    experts.check(x, ids.to(device))


def test_more_tiles_than_run_at_once(device, rng):
    # Of very different heights, so that who is done early gets more of them.
    experts = Experts(rng, 7, 1664, 1024, device)
    ids = random_ids(rng, 1000, 6, 2).to(device)
    ids[:, 0] = 6
    x = torch.randn(1000, 1664, generator=rng).to(BF16).to(device)
    whole = experts.run(x, ids)
    for _ in range(3):
        for name, one, other in zip(("gate_up", "down"), experts.run(x, ids), whole, strict=True):
            assert_equal(one, other, name=f"{name} again")
    for begin, end in ((0, 7), (300, 360)):
        part = experts.run(x[begin:end], ids[begin:end])
        for name, some, all_rows in zip(("gate_up", "down"), part, whole, strict=True):
            assert_equal(some, all_rows[begin * 2 : end * 2], name=f"{name} of tokens {begin} to {end}")


@pytest.mark.parametrize("num_tokens", [2, 90, 900])
def test_rows_of_other_ranks_are_never_read(num_tokens, device, rng):
    experts = Experts(rng, 3, 192, 64, device)
    ids = random_ids(rng, num_tokens, 8, 2)
    x = torch.randn(num_tokens, 192, generator=rng).to(BF16)
    x[((ids < 4) | (ids >= 7)).all(1)] = POISON
    offsets, rows, _ = ops.moe_plan(ids.to(device), 4, 3)
    num_local = int(offsets[-1])
    rows[num_local:] = REMOTE_ROW
    args = (experts.gate_up, None, offsets, rows, Activation.SILU)
    act = ops.moe_gate_up(x.to(device), *args)
    truth = reference.moe_gate_up(x.to(device).double(), *args)
    same = reference.moe_gate_up(x.to(device), *args)
    assert_close_to_truth(act[:num_local], truth[:num_local], same[:num_local], name="gate_up")
    act[num_local:] = POISON
    out = ops.moe_down(act, experts.down, None, offsets)
    truth = reference.moe_down(act.double(), experts.down, None, offsets)
    same = reference.moe_down(act, experts.down, None, offsets)
    assert_close_to_truth(out[:num_local], truth[:num_local], same[:num_local], name="down")


def test_64k_tokens(device, rng):
    num_tokens = 65536
    experts = Experts(rng, 16, 64, 32, device)
    x = torch.randn(num_tokens, 64, generator=rng).to(BF16).to(device)
    ids = random_ids(rng, num_tokens, 16, 2).to(device)
    act, out = experts.run(x, ids)
    some = torch.arange(0, num_tokens, 997, device=device)
    rows = (2 * some[:, None] + torch.arange(2, device=device)).flatten()
    part = experts.run(x[some], ids[some])
    assert_equal(part[0], act[rows], name="gate_up")
    assert_equal(part[1], out[rows], name="down")
    experts.check(x[some], ids[some])


@pytest.mark.parametrize("num_experts", [8, 130])
def test_router_scores_do_not_depend_on_the_batch(num_experts, device, rng):
    # Enough tokens for every form of the sums over k.
    num_tokens, hidden = 7800, 192
    x = torch.randn(num_tokens, hidden, generator=rng).to(BF16).to(device)
    gate_weight = (torch.randn(num_experts, hidden, generator=rng) * hidden**-0.5).to(device)
    ids, weights = ops.moe_router(x, gate_weight, None, 4, 1.0)
    for begin, end in ((0, 1), (1, 13), (13, 40), (40, 104), (104, 300), (300, 1000), (1000, 5000)):
        part = ops.moe_router(x[begin:end], gate_weight, None, 4, 1.0)
        assert_equal(part[0], ids[begin:end], name=f"topk_ids of tokens {begin} to {end}")
        assert_equal(part[1], weights[begin:end], name=f"topk_weights of tokens {begin} to {end}")
    true_ids, true_weights = reference.moe_router(x.double(), gate_weight, None, 4, 1.0)
    score = torch.sigmoid(x.double() @ gate_weight.double().T).sort(dim=1, descending=True).values[:, :5]
    clear = (score[:, :-1] - score[:, 1:] > 1e-5).all(1)
    assert clear.float().mean() > 0.9
    assert_equal(ids[clear], true_ids[clear], name="topk_ids")
    same = reference.moe_router(x.float(), gate_weight, None, 4, 1.0)[1]
    assert_close_to_truth(weights[clear], true_weights[clear], same[clear], name="topk_weights")
