from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from cases import load
from mmx import ops
from mmx.distributed.peers import Peers
from mmx.ops import reference
from mmx.ops.rope import rope_table
from ops.compare import assert_close_to_truth, assert_equal
from ops.ranks import connect, mirror, on_all_ranks

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
MAX_POSITIONS, EPS = 300, 1e-6


class Case(NamedTuple):
    """Arguments of the op by position, and the heads before v."""

    args: list
    v_begin: int

    def to(self, dtype: torch.dtype) -> Case:
        """A copy whose projection and pages have ``dtype``; weights and indices are shared."""
        moved = [x.to(dtype, copy=True) if i < 4 and x is not None else x for i, x in enumerate(self.args)]
        return Case(moved, self.v_begin)


def make(dims: dict[str, int], dtype: torch.dtype, gemma: bool, device: torch.device, rng: torch.Generator):
    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(dtype).to(device)

    tokens, heads, kv_heads, width = (
        dims[name] for name in ("num_tokens", "num_heads", "num_kv_heads", "head_dim")
    )
    index_heads, block_size = dims["num_index_heads"], dims["block_size"]
    with_index = index_heads > 0
    num_blocks = (tokens + block_size - 1) // block_size + 2
    slots = torch.randperm(num_blocks * block_size, generator=rng)[:tokens]
    slots[1::3] = -1
    total = heads + 2 * kv_heads + index_heads + with_index
    whole = (heads, kv_heads) if dims["whole"] else (1, 1)
    args = [
        rand(tokens, total + 1, width)[:, :total],
        rand(num_blocks, kv_heads, block_size, width),
        rand(num_blocks, kv_heads, block_size, width),
        rand(num_blocks, block_size, width) if with_index else None,
        rand(whole[0] * width),
        rand(whole[1] * width),
        rand(width) if with_index else None,
        rand(width) if with_index else None,
        rope_table(MAX_POSITIONS, dims["rotary_dim"], 1e4).to(device),
        torch.randint(0, MAX_POSITIONS, (tokens,), generator=rng).to(device),
        slots.to(device),
        heads,
        EPS,
        gemma,
    ]
    return Case(args, total - kv_heads)


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("qkv", "norm_rope_store"))
def test_norm_rope_store(dims, dtype, gemma, device, rng):
    case = make(dims, dtype, gemma, device, rng)
    truth, low = case.to(torch.float64), case.to(dtype)
    reference.norm_rope_store(*truth.args)
    reference.norm_rope_store(*low.args)
    qkv, pages, before = case.args[0], case.args[1:4], case.to(dtype).args
    ops.norm_rope_store(*case.args)

    heads, k_end = dims["num_heads"], dims["num_heads"] + dims["num_kv_heads"]
    index_q_end = k_end + dims["num_index_heads"]
    for part in (slice(0, heads), slice(k_end, index_q_end)):
        assert_close_to_truth(qkv[:, part], truth.args[0][:, part], low.args[0][:, part])
    assert_equal(qkv[:, case.v_begin :], before[0][:, case.v_begin :], name="v of the projection")
    for name, i in (("k_cache", 1), ("v_cache", 2), ("index_k_cache", 3)):
        if pages[i - 1] is None:
            continue
        assert_close_to_truth(pages[i - 1], truth.args[i], low.args[i])
        untouched = truth.args[i] == before[i].double()
        assert_equal(pages[i - 1][untouched], before[i][untouched], name=f"{name} outside the slots")


@pytest.mark.parametrize(
    "index_pages", [torch.bfloat16, torch.float8_e4m3fn], ids=["index_bf16", "index_e4m3"]
)
@pytest.mark.parametrize("dims", load("qkv", "norm_rope_store"))
def test_e4m3_pages_hold_the_codes_of_the_stored_rows(dims, index_pages, device, rng):
    exact = make(dims, torch.bfloat16, True, device, rng).args
    coded = Case(exact, 0).to(torch.bfloat16).args
    scales = [torch.rand(dims["num_kv_heads"], generator=rng).to(device) + 0.5 for _ in range(2)]
    page_dtypes = {1: torch.float8_e4m3fn, 2: torch.float8_e4m3fn, 3: index_pages}
    for i, page_dtype in page_dtypes.items():
        coded[i] = None if exact[i] is None else torch.zeros_like(exact[i]).to(page_dtype)
    ops.norm_rope_store(*exact)
    ops.norm_rope_store(*coded, *scales)
    assert_equal(coded[0][:, : dims["num_heads"]], exact[0][:, : dims["num_heads"]], name="q")
    slots = exact[10][exact[10] >= 0]
    blocks, offsets = slots // dims["block_size"], slots % dims["block_size"]
    for i, scale in ((1, scales[0]), (2, scales[1])):
        codes = (exact[i][blocks, :, offsets].float() / scale[:, None]).clamp(-448, 448)
        assert_equal(coded[i][blocks, :, offsets].float(), codes.to(torch.float8_e4m3fn).float())
    if exact[3] is not None:
        codes = exact[3][blocks, offsets].to(index_pages)
        assert_equal(coded[3][blocks, offsets].float(), codes.float(), name="index_k_cache")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("qkv", "qk_mean_squares"))
def test_qk_mean_squares(dims, dtype, device, rng):
    """Of two ranks' heads: the same on both, and without inboxes a share of it."""
    tokens, heads, kv_heads, width = (
        dims[name] for name in ("num_tokens", "num_heads", "num_kv_heads", "head_dim")
    )
    shape = (tokens, heads + 2 * kv_heads + 1, width)
    parts = [torch.randn(shape, generator=rng).to(dtype).to(device)[:, :-1] for _ in range(2)]
    counts = (heads, kv_heads)
    shares = [reference.qk_mean_squares(part.double(), *counts, 2) for part in parts]
    for part, share in zip(parts, shares, strict=True):
        assert_close_to_truth(ops.qk_mean_squares(part, *counts, 2), share, share.float())
    peers = connect(2, tokens + 1, 4, device)
    outs = [torch.empty(tokens, 2, device=device) for _ in parts]

    def call(place: Peers, rank: int) -> None:
        ops.qk_mean_squares(parts[rank], *counts, 2, *place, out=outs[rank])

    for _ in range(3):
        on_all_ranks(peers, call)
    assert_equal(outs[1], outs[0])
    truth = shares[0] + shares[1]
    assert_close_to_truth(outs[0], truth, truth.float())


def test_mean_squares_that_come_back(device, rng):
    """The whole exchange in one kernel: with a rank that sends the same."""
    part = torch.randn(5, 8, 128, generator=rng).to(torch.bfloat16).to(device)
    share = ops.qk_mean_squares(part, 4, 2, 2)
    place = mirror(6, 2, device)
    for _ in range(3):
        assert_equal(ops.qk_mean_squares(part, 4, 2, 2, *place), share + share)
    assert place.epochs.tolist() == [3] * 5 + [0]


def test_the_reference_exchanges_mean_squares(rng):
    parts = [torch.randn(3, 5, 8, generator=rng) for _ in range(2)]
    functions = (ops.qk_mean_squares, reference.qk_mean_squares)
    results = on_all_ranks(
        connect(2, 3, 2, torch.device("cpu")),
        lambda place, rank: functions[rank](parts[rank], 2, 1, 2, *place),
    )
    assert_close_to_truth(results[0], results[1].double(), results[1])


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "dims", [c for c in load("qkv", "norm_rope_store") if c.values[0]["whole"] and c.values[0]["num_tokens"]]
)
def test_norm_rope_store_by_given_mean_squares(dims, dtype, gemma, device, rng):
    """Those of this rank's heads change nothing; others scale q and k."""
    case = make(dims, dtype, gemma, device, rng)
    given = case.to(dtype)
    mean = ops.qk_mean_squares(given.args[0], dims["num_heads"], dims["num_kv_heads"], 1)
    doubled = case.to(dtype)
    truth = case.to(torch.float64)
    ops.norm_rope_store(*given.args, mean_squares=mean)
    ops.norm_rope_store(*doubled.args, mean_squares=4 * mean + 3 * EPS)
    reference.norm_rope_store(*truth.args)
    ops.norm_rope_store(*case.args)
    heads = slice(0, dims["num_heads"])
    assert_close_to_truth(given.args[0][:, heads], truth.args[0][:, heads], case.args[0][:, heads])
    assert_close_to_truth(given.args[1], truth.args[1], case.args[1])
    assert_close_to_truth(
        2 * doubled.args[0][:, heads],
        truth.args[0][:, heads],
        case.args[0][:, heads],
        name="by twice the root",
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("whole", "num_index_heads"), [(0, 2), (1, 0)], ids=["heads", "whole"])
def test_rows_do_not_depend_on_their_batch(whole, num_index_heads, dtype, device, rng):
    """Many tokens and few go through other kernels: the same q, index q and pages."""
    dims = {"num_tokens": 700, "num_heads": 6, "num_kv_heads": 2, "num_index_heads": num_index_heads}
    dims |= {"head_dim": 128, "rotary_dim": 64, "block_size": 16, "whole": whole}
    case = make(dims, dtype, True, device, rng)
    parts = case.to(dtype)
    ops.norm_rope_store(*case.args)
    for begin, end in ((0, 1), (1, 10), (10, 60), (60, 300), (300, 700)):
        args = list(parts.args)
        args[0], args[9], args[10] = (args[i][begin:end] for i in (0, 9, 10))
        ops.norm_rope_store(*args)
    for name, part, expected in zip(("qkv", "k", "v", "index k"), parts.args, case.args, strict=False):
        if expected is not None:
            assert_equal(part, expected, name=name)


def test_norm_rope_store_names_what_is_wrong(device, rng):
    dims = {"num_tokens": 2, "num_heads": 2, "num_kv_heads": 1, "num_index_heads": 1, "head_dim": 8}
    dims |= {"rotary_dim": 4, "block_size": 2, "whole": 0}
    args = make(dims, torch.float32, False, device, rng).args

    def call(message: str, **changes: object) -> None:
        names = ["qkv", "k_cache", "v_cache", "index_k_cache", "q_weight", "k_weight", "index_q_weight"]
        changed = [changes.get(names[i], x) if i < len(names) else x for i, x in enumerate(args)]
        with pytest.raises(RuntimeError, match=message):
            ops.norm_rope_store(*changed)

    call(r"norm_rope_store: qkv must have 2 \+ 2 \* 1 heads and index heads, got 5", qkv=args[0][:, :5])
    call("index_k_cache, index_q_weight and index_k_weight must be given together", index_k_cache=None)
    call(r"q_weight must be \[16\], got \[9\]", q_weight=torch.zeros(9, device=device))
    call(
        "v_cache must be float32, got BFloat16|v_cache must be float32, got bfloat16",
        v_cache=args[2].bfloat16(),
    )
    with pytest.raises(RuntimeError, match=r"q_weight must be \[16\], got \[8\]"):
        ops.norm_rope_store(*args, mean_squares=torch.zeros(2, 2, device=device))
    with pytest.raises(RuntimeError, match=r"qk_mean_squares: qkv must have 6 \+ 1 heads or more, got 6"):
        ops.qk_mean_squares(args[0], 6, 1, 1)


def test_opcheck(device, rng):
    dims = {"num_tokens": 3, "num_heads": 2, "num_kv_heads": 1, "num_index_heads": 1, "head_dim": 8}
    case = make(dims | {"rotary_dim": 4, "block_size": 2, "whole": 0}, torch.float32, False, device, rng)
    torch.library.opcheck(torch.ops.mmx.norm_rope_store.default, (*case.args, None, None))
    args = (torch.empty(3, 2, device=device), case.args[0], 2, 1, 1, [], None, 0, 0.0)
    torch.library.opcheck(torch.ops.mmx.qk_mean_squares.default, args)
