"""Selector and attention where Hopper kernels serve them: bf16, head 128, pages of 128 tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal
from ops.paged import PagedBatch, make_batch
from ops.test_selector import assert_selected

pytestmark = pytest.mark.cuda
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
PAGE, DIM = 128, 128
SCALE = DIM**-0.5

DECODES = [
    pytest.param([(1, 1)], id="one-token"),
    pytest.param([(1, 127), (1, 128), (1, 129), (1, 2048), (1, 2049)], id="around-pages"),
    pytest.param([(1, 9000), (1, 40), (1, 2177)], id="ragged"),
    pytest.param([(3, 2100), (8, 4001), (0, 7), (1, 300), (2, 2050)], id="drafts"),
    pytest.param([(1, 3000 + 17 * i) for i in range(70)], id="many"),
]
PREFILLS = [
    pytest.param([(300, 300)], id="short"),
    pytest.param([(2500, 2500)], id="whole"),
    pytest.param([(700, 5000), (1, 4000), (130, 130), (0, 5), (20, 2100)], id="mixed"),
    pytest.param([(129, 2305), (400, 2200)], id="two-chunks"),
]


def draw(rng: torch.Generator, *shape: int, integers: bool = False) -> torch.Tensor:
    return (
        torch.randint(-2, 3, shape, generator=rng).float() if integers else torch.randn(shape, generator=rng)
    )


def strided(rng: torch.Generator, tokens: int, heads: int, integers: bool = False) -> torch.Tensor:
    """[tokens, heads, DIM] bf16 with aligned gaps after tokens and heads."""
    return draw(rng, tokens, heads + 1, DIM + 8, integers=integers).bfloat16()[:, :heads, :DIM]


def selector_inputs(
    batch: PagedBatch, heads: int, integers: bool, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    k = batch.poison_unused(draw(rng, batch.num_blocks, PAGE, DIM, integers=integers), 1).bfloat16()
    return strided(rng, batch.num_tokens, heads, integers), k


def check_select(
    batch: PagedBatch, heads: int, numbers: tuple[int, int, int], integers: bool, rng: torch.Generator
) -> torch.Tensor:
    q, k = selector_inputs(batch, heads, integers, rng)
    # Why .to first, then a view: a strided copy to the device would become dense.
    out = ops.select_blocks(to_cuda(q), k.to(CUDA), *batch.arguments(CUDA), *numbers).cpu()
    expected = reference.select_blocks(q, k, *batch.arguments(CPU), *numbers)
    assert_selected(out, expected, integers, batch, q, k)
    return out


def to_cuda(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=CUDA).copy_(t)


def random_blocks(batch: PagedBatch, num_kv_heads: int, topk: int, rng: torch.Generator) -> torch.Tensor:
    """The token's own block and random earlier ones, ascending, -1 at the tail."""
    rows = []
    for q_len, seq_len in zip(batch.q_lens, batch.seq_lens, strict=True):
        own = torch.arange(seq_len - q_len, seq_len)[:, None, None] // PAGE
        order = torch.rand(q_len, num_kv_heads, max(1, -(-seq_len // PAGE)), generator=rng)
        block = torch.arange(order.shape[-1])
        order = order.masked_fill(block > own, 2.0).masked_fill(block == own, -1.0)
        chosen = order.argsort(-1)[..., :topk]
        chosen = chosen.masked_fill(chosen > own, 1 << 20).sort(-1).values
        chosen = chosen.masked_fill(chosen == 1 << 20, -1)
        rows.append(torch.nn.functional.pad(chosen, (0, topk - chosen.shape[-1]), value=-1))
    return torch.cat(rows).int()


def overlapping_blocks(
    batch: PagedBatch, num_kv_heads: int, topk: int, union: int, rng: torch.Generator
) -> torch.Tensor:
    """Eight neighbouring tokens draw their blocks from the same ``union`` ones and their own."""
    ids = random_blocks(batch, num_kv_heads, topk, rng)
    for seq, (q_len, seq_len) in enumerate(zip(batch.q_lens, batch.seq_lens, strict=True)):
        rows = ids[batch.rows(seq)]
        for first in range(0, q_len, 8):
            own = torch.arange(seq_len - q_len + first, min(seq_len - q_len + first + 8, seq_len)) // PAGE
            pool = torch.randperm(int(own[0]), generator=rng)[:union]
            if len(pool) < topk - 1:
                continue
            order = torch.rand(len(own), num_kv_heads, len(pool), generator=rng).argsort(-1)
            chosen = pool[order[..., : topk - 1]].sort(-1).values
            rows[first : first + 8] = torch.cat([chosen, own[:, None, None].expand(-1, num_kv_heads, 1)], -1)
    return ids


def attention_inputs(
    batch: PagedBatch, heads: int, kv_heads: int, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (batch.num_blocks, kv_heads, PAGE, DIM)
    k, v = (batch.poison_unused(draw(rng, *shape), 2).bfloat16().to(CUDA) for _ in range(2))
    return to_cuda(strided(rng, batch.num_tokens, heads)), k, v


def check_attention(name: str, *args: object) -> torch.Tensor:
    out = getattr(ops, name)(*args)
    wide = tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
    run = getattr(reference, name)
    assert_close_to_truth(out, run(*wide), run(*args))
    return out


@pytest.mark.parametrize("integers", [True, False], ids=["integers", "normal"])
@pytest.mark.parametrize("lens", DECODES + PREFILLS)
def test_select_blocks(lens, integers, rng):
    batch = make_batch(lens, PAGE, rng)
    check_select(batch, 4, (16, 0, 1), integers, rng)


@pytest.mark.parametrize("numbers", [(16, 1, 2), (20, 3, 1), (1, 0, 1), (4, 2, 2), (7, 0, 3)])
@pytest.mark.parametrize("lens", [[(2, 5000), (1, 2600)], [(300, 3500)]], ids=["decode", "prefill"])
def test_forced_blocks(lens, numbers, rng):
    check_select(make_batch(lens, PAGE, rng), 2, numbers, True, rng)


@pytest.mark.parametrize("seq_len", [40_000, 140_000])
@pytest.mark.parametrize("q_len", [2, 40])
def test_select_long_context(q_len, seq_len, rng):
    """More blocks than a warp and than four warps hold."""
    check_select(make_batch([(q_len, seq_len)], PAGE, rng), 4, (16, 0, 1), True, rng)


@pytest.mark.parametrize("q_len", [1, 40])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf"), 0.0])
def test_select_equal_scores(value, q_len, rng):
    """All scores equal or NaN: the lowest ids win."""
    batch = make_batch([(q_len, 5000)], PAGE, rng)
    q = torch.zeros(q_len, 4, DIM, dtype=torch.bfloat16, device=CUDA)
    q[..., 0] = 1
    k = torch.zeros(batch.num_blocks, PAGE, DIM, dtype=torch.bfloat16, device=CUDA)
    k[..., 0] = value
    out = ops.select_blocks(q, k, *batch.arguments(CUDA), 16, 0, 1).cpu()
    for token in range(q_len):
        own = (5000 - q_len + token) // PAGE
        assert out[token].tolist() == [[*range(15), own]] * 4


@pytest.mark.parametrize("heads", [(64, 4), (12, 2), (3, 3)], ids=["16", "6", "1"])
@pytest.mark.parametrize("lens", DECODES)
def test_sparse_decode(lens, heads, rng):
    batch = make_batch(lens, PAGE, rng)
    args = attention_inputs(batch, *heads, rng)
    ids = random_blocks(batch, heads[1], 16, rng).to(CUDA)
    check_attention("sparse_attention", *args, ids, *batch.arguments(CUDA), SCALE)


@pytest.mark.parametrize("topk", [1, 5, 16])
@pytest.mark.parametrize("lens", PREFILLS)
def test_sparse_prefill(lens, topk, rng):
    batch = make_batch(lens, PAGE, rng)
    args = attention_inputs(batch, 32, 2, rng)
    ids = random_blocks(batch, 2, topk, rng).to(CUDA)
    check_attention("sparse_attention", *args, ids, *batch.arguments(CUDA), SCALE)


@pytest.mark.parametrize("blocks", ["random", "overlapping", "both"])
@pytest.mark.parametrize(
    "lens",
    [
        pytest.param([(700, 9000)], id="one"),
        pytest.param([(1, 300), (517, 9400), (260, 11_000), (40, 3000)], id="mixed"),
        # More blocks of all sequences than a thread block counts at a time.
        pytest.param([(300, 26_900), *((6, 200 + 9 * i) for i in range(20))], id="many"),
    ],
)
def test_sparse_prefill_long(lens, blocks, rng):
    """Tiles of neighbours that share blocks, lists of queries per block, and both in one call."""
    batch = make_batch(lens, PAGE, rng)
    args = attention_inputs(batch, 32, 2, rng)
    ids = random_blocks(batch, 2, 16, rng)
    if blocks != "random":
        shared = overlapping_blocks(batch, 2, 16, 20, rng)
        ids = (
            torch.where(torch.arange(len(ids))[:, None, None] // 50 % 2 == 0, ids, shared)
            if blocks == "both"
            else shared
        )
    check_attention("sparse_attention", *args, ids.to(CUDA), *batch.arguments(CUDA), SCALE)


@pytest.mark.parametrize("heads", [(32, 2), (12, 2), (3, 3)], ids=["16", "6", "1"])
@pytest.mark.parametrize("lens", DECODES)
def test_paged_decode(lens, heads, rng):
    batch = make_batch(lens, PAGE, rng)
    check_attention("paged_attention", *attention_inputs(batch, *heads, rng), *batch.arguments(CUDA), SCALE)


@pytest.mark.parametrize("heads", [(32, 2), (12, 2)], ids=["16", "6"])
@pytest.mark.parametrize("lens", PREFILLS)
def test_paged_prefill(lens, heads, rng):
    batch = make_batch(lens, PAGE, rng)
    check_attention("paged_attention", *attention_inputs(batch, *heads, rng), *batch.arguments(CUDA), SCALE)


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 30.0])
@pytest.mark.parametrize("lens", [[(1, 700), (2, 300)], [(400, 1100)]], ids=["decode", "prefill"])
def test_score_range(lens, magnitude, rng):
    batch = make_batch(lens, PAGE, rng)
    q, k, v = attention_inputs(batch, 32, 2, rng)
    ids = random_blocks(batch, 2, 4, rng).to(CUDA)
    check_attention("sparse_attention", q * magnitude, k, v, ids, *batch.arguments(CUDA), 1.0)
    check_attention("paged_attention", q * magnitude, k, v, *batch.arguments(CUDA), 1.0)


@pytest.mark.parametrize(
    "lens", [[(1, 700), (2, 300)], [(400, 1100)], [(300, 9000)]], ids=["decode", "prefill", "lists"]
)
def test_huge_values(lens, rng):
    """Scores of a few thousand, so that one key takes all the weight; values near the end of the range."""
    batch = make_batch(lens, PAGE, rng)
    q, k, v = attention_inputs(batch, 32, 2, rng)
    ids = random_blocks(batch, 2, 16, rng).to(CUDA)
    tail = (*batch.arguments(CUDA), 1.0)
    check_attention("sparse_attention", q * 100, k, v * 1e34, ids, *tail)
    check_attention("paged_attention", q * 100, k, v * 1e34, *tail)


@pytest.mark.parametrize(
    "lens", [[(1, 700), (2, 300)], [(400, 1100)], [(300, 9000)]], ids=["decode", "prefill", "lists"]
)
def test_minus_infinity(lens, rng):
    """Keys whose scores are -inf take no weight, also where they fill whole blocks."""
    batch = make_batch(lens, PAGE, rng)
    q, k, v = attention_inputs(batch, 32, 2, rng)
    q[..., 0] = 1
    own = torch.zeros(batch.num_blocks, dtype=torch.bool)  # pages that some token's own block is in
    for table, q_len, seq_len in zip(batch.block_table, batch.q_lens, batch.seq_lens, strict=True):
        own[table[(seq_len - q_len) // PAGE : -(-seq_len // PAGE)].long()] = True
    lost = torch.rand(batch.num_blocks, PAGE, generator=rng) < 0.3
    lost |= torch.rand(batch.num_blocks, 1, generator=rng) < 0.2
    lost = (lost & ~own[:, None])[:, None].expand(-1, 2, -1).to(CUDA)
    k[..., 0] = k[..., 0].masked_fill(lost, float("-inf"))
    tail = batch.arguments(CUDA)
    check_attention("sparse_attention", q, k, v, random_blocks(batch, 2, 16, rng).to(CUDA), *tail, SCALE)
    check_attention("paged_attention", q, k, v, *tail, SCALE)


def test_random_shapes(rng):
    """200 calls of each op: one to five sequences, decodes, drafts, chunks and empty ones."""

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    for _ in range(200):
        lens = [
            (min(pick(0, 1, 1, 2, 8, 150), length), length)
            for length in (pick(1, 2, 127, 128, 129, 255, 300, 700, 1025) for _ in range(pick(1, 2, 5)))
        ]
        batch = make_batch(lens, PAGE, rng)
        if batch.num_tokens == 0:
            continue
        kv_heads, topk = pick(1, 2), pick(1, 2, 4, 7)
        args = attention_inputs(batch, kv_heads * pick(1, 6, 16, 16), kv_heads, rng)
        tail = (*batch.arguments(CUDA), SCALE)
        check_attention("sparse_attention", *args, random_blocks(batch, kv_heads, topk, rng).to(CUDA), *tail)
        check_attention("paged_attention", *args, *tail)
        check_select(batch, pick(1, 2, 4), (topk, 0, 1), True, rng)


def runs_of_each_op(
    batch: PagedBatch, rng: torch.Generator
) -> tuple[list[Callable[[], torch.Tensor]], tuple[torch.Tensor, ...]]:
    q, k, v = attention_inputs(batch, 64, 4, rng)
    index_q, index_k = (t.to(CUDA) for t in selector_inputs(batch, 4, False, rng))
    ids = random_blocks(batch, 4, 16, rng).to(CUDA)
    tail = batch.arguments(CUDA)
    return [
        lambda: ops.select_blocks(index_q, index_k, *tail, 16, 0, 1),
        lambda: ops.sparse_attention(q, k, v, ids, *tail, SCALE),
        lambda: ops.paged_attention(q, k, v, *tail, SCALE),
    ], tail


@pytest.mark.parametrize(
    "lens", [[(1, 4000), (1, 700), (2, 3000)], [(2300, 9000)]], ids=["decode", "prefill"]
)
def test_repetition(lens, rng):
    for run in runs_of_each_op(make_batch(lens, PAGE, rng), rng)[0]:
        first = run()
        for _ in range(5):
            assert_equal(run(), first)


@pytest.mark.parametrize("lens", [[(1, 4000), (1, 700), (1, 3000)], [(600, 4000)]], ids=["decode", "prefill"])
def test_graph_follows_lengths(lens, rng):
    """A captured graph, replayed twice after the lengths have changed, gives what a fresh call gives."""
    runs, (_, _, seq_lens, _) = runs_of_each_op(make_batch(lens, PAGE, rng), rng)
    select, _, paged = runs  # chosen blocks would have to change with the lengths
    for run in (select, paged):
        long = seq_lens.clone()
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        for shift in (0, 1, 130):
            seq_lens.copy_(long - shift)
            for _ in range(2):
                out.fill_(-7)
                graph.replay()
                assert_equal(out, run(), name=f"lengths less {shift}")
        seq_lens.copy_(long)


def test_tokens_of_no_sequence(rng):
    """Padding of a captured graph: attention leaves such rows alone, the selector chooses nothing."""
    batch = make_batch([(1, 4000), (1, 300)], PAGE, rng)
    tail = batch.arguments(CUDA)
    q, k, v = attention_inputs(batch, 64, 4, rng)
    q = torch.cat([q, q, q])
    ids = random_blocks(batch, 4, 16, rng).to(CUDA)
    out = torch.full(q.shape, 3.0, dtype=q.dtype, device=CUDA)
    ops.sparse_attention(q, k, v, torch.cat([ids, ids, ids]), *tail, SCALE, out=out)
    assert (out[2:] == 3).all()
    alone = ops.sparse_attention(q[:2], k, v, ids, *tail, SCALE)  # may be split otherwise
    assert_close_to_truth(out[:2], alone, alone)
    ops.paged_attention(q, k, v, *tail, SCALE, out=out.fill_(3.0))
    assert (out[2:] == 3).all()
    index_q, index_k = (t.to(CUDA) for t in selector_inputs(batch, 4, False, rng))
    chosen = ops.select_blocks(torch.cat([index_q] * 3), index_k, *tail, 16, 0, 1)
    assert (chosen[2:] == -1).all()
    assert_equal(chosen[:2], ops.select_blocks(index_q, index_k, *tail, 16, 0, 1))
