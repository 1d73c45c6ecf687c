from __future__ import annotations

import math

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from mmx.ops.rope import rope_table
from ops.compare import assert_close_to_truth, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
MAX_POSITIONS = 300


def make(dims: dict[str, int], dtype: torch.dtype, device: torch.device, rng: torch.Generator) -> tuple:
    x = torch.randn(dims["num_tokens"], dims["num_heads"], dims["head_dim"], generator=rng).to(dtype)
    positions = torch.randint(0, MAX_POSITIONS, (dims["num_tokens"],), generator=rng)
    table = rope_table(MAX_POSITIONS, dims["rotary_dim"], 1e4)
    return x.to(device), table.to(device), positions.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("rope", "rope"))
def test_rope(dims, dtype, device, rng):
    x, table, positions = make(dims, dtype, device, rng)
    out = ops.rope(x, table, positions)
    truth = reference.rope(x.double(), table, positions)
    assert_close_to_truth(out, truth, reference.rope(x, table, positions))
    rotary_dim = dims["rotary_dim"]
    assert_equal(out[..., rotary_dim:], x[..., rotary_dim:])
    if dims["num_heads"]:
        wide = strided(x)
        assert_equal(ops.rope(wide, table, positions), out, name="strided x")
        assert_equal(ops.rope(wide, table, positions, out=wide), out, name="in place")
        assert_equal(wide, out, name="in place")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_on_heads_inside_a_wider_projection(dtype, device, rng):
    tokens, heads, head_dim = 5, 3, 32
    qkv = torch.randn(tokens, heads + 4, head_dim, generator=rng).to(dtype).to(device)
    table, positions = rope_table(8, 16, 1e4).to(device), torch.tensor([7, 0, 3, 3, 1], device=device)
    before, q = qkv.clone(), qkv[:, :heads]
    expected = ops.rope(q.contiguous(), table, positions)
    ops.rope(q, table, positions, out=q)
    assert_equal(q, expected)
    assert_equal(qkv[:, heads:], before[:, heads:], name="neighbours")


def test_rope_pairs_dimension_i_with_i_plus_half(device):
    table = rope_table(4, 4, 100.0).to(device)
    x = torch.tensor([[[1.0, 10.0, 2.0, 20.0, 5.0]]], device=device)
    out = ops.rope(x, table, torch.tensor([3], device=device))[0, 0].cpu()
    for i, angle in enumerate([3.0, 3.0 / math.sqrt(100.0)]):
        a, b = x[0, 0, i].item(), x[0, 0, i + 2].item()
        assert out[i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), rel=1e-5)
        assert out[i + 2].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle), rel=1e-5)
    assert out[4].item() == 5.0


def test_rope_position_zero_is_the_identity_and_angles_add(device, rng):
    table = rope_table(64, 16, 1e4).to(device)
    q, k = (torch.randn(1, 1, 16, generator=rng).to(device) for _ in range(2))

    def score(q_position: int, k_position: int) -> float:
        rotated = [
            ops.rope(x, table, torch.tensor([p], device=device))
            for x, p in ((q, q_position), (k, k_position))
        ]
        return float((rotated[0] * rotated[1]).sum())

    assert_equal(ops.rope(q, table, torch.tensor([0], device=device)), q)
    assert score(10, 3) == pytest.approx(score(47, 40), abs=1e-4)
    assert score(10, 3) != pytest.approx(score(10, 4), abs=1e-4)


def test_rope_table_frequencies_of_the_published_models():
    table = rope_table(2, 64, 5e6)
    frequencies = torch.atan2(table[1, 32:], table[1, :32])
    expected = {
        0: 1.0,
        1: 0.617528758,
        2: 0.381341767,
        15: 7.24198816e-4,
        16: 4.47213595e-4,
        30: 5.24463925e-7,
        31: 3.23871556e-7,
    }
    for i, value in expected.items():
        assert frequencies[i].item() == pytest.approx(value, rel=2e-6), i
    assert_equal(table[0], torch.cat([torch.ones(32), torch.zeros(32)]))


def test_rope_does_not_depend_on_threads(rng):
    x, table, positions = make(
        {"num_tokens": 129, "num_heads": 5, "head_dim": 128, "rotary_dim": 64},
        torch.bfloat16,
        torch.device("cpu"),
        rng,
    )
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        results.append(ops.rope(x, table, positions))
    torch.set_num_threads(1)
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


def test_rope_names_what_is_wrong(device):
    x, table = torch.zeros(2, 1, 8, device=device), rope_table(4, 8, 1e4).to(device)
    positions = torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"rope: positions must be \[num_tokens=2\], got \[1\]"):
        ops.rope(x, table, positions[:1])
    with pytest.raises(RuntimeError, match="rope: positions must be int64, got"):
        ops.rope(x, table, positions.int())
    with pytest.raises(RuntimeError, match="rotary_dim must be even and at most head_dim=6, got 8"):
        ops.rope(x[..., :6].contiguous(), table, positions)
    with pytest.raises(RuntimeError, match="rope: cos_sin must be float32"):
        ops.rope(x, table.bfloat16(), positions)


@pytest.mark.parametrize("position", [-1, 4])
def test_rope_rejects_positions_outside_the_table(position):
    with pytest.raises(RuntimeError, match=rf"rope: positions\[1\] must lie in \[0, 4\), got {position}"):
        ops.rope(torch.zeros(2, 1, 8), rope_table(4, 8, 1e4), torch.tensor([0, position]))


def test_opcheck(device, rng):
    x = torch.randn(4, 2, 16, generator=rng).to(device)
    args = (rope_table(4, 8, 1e4).to(device), torch.arange(4, device=device))
    torch.library.opcheck(torch.ops.mmx.rope.default, (torch.empty_like(x), x, *args))
