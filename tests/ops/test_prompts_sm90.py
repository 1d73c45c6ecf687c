"""Prompts where Hopper kernels serve them: long selections; e4m3 pages in selector and dense attention."""

from __future__ import annotations

import pytest
import torch

from mmx import ops
from mmx.ops import reference
from ops.compare import assert_equal
from ops.paged import PagedBatch, make_batch
from ops.test_attention_sm90 import (
    CUDA,
    DIM,
    PAGE,
    PREFILLS,
    overlapping_blocks,
    random_blocks,
    selector_inputs,
    to_cuda,
)
from ops.test_pages_sm90 import FP8, MIXED, PAGES, Inputs
from ops.test_selector import assert_same_up_to_rounding

pytestmark = pytest.mark.cuda
CPU = torch.device("cpu")

LONG = [
    pytest.param([(40, 33_000)], id="few-tokens"),
    pytest.param([(3300, 36_000)], id="many-tokens"),
    pytest.param([(500, 40_000), (1, 4000), (130, 130), (0, 5), (70, 2100), (65, 90_000)], id="mixed"),
    pytest.param([(64, 2300), (3200, 33_500)], id="two-chunks"),
]


# Forced blocks are the same for both kinds of pages: once on fp8 will do.
NUMBERS = [(16, 0, 1), (16, 1, 2), (4, 2, 2), (9, 0, 3), (18, 1, 1)]
SELECTIONS = [
    *(pytest.param(torch.bfloat16, numbers, id=f"bf16-numbers{i}") for i, numbers in enumerate(NUMBERS)),
    pytest.param(FP8, NUMBERS[0], id="fp8-numbers0"),
]


@pytest.mark.parametrize(("pages", "numbers"), SELECTIONS)
@pytest.mark.parametrize("lens", LONG)
def test_select_of_many_blocks(lens, pages, numbers, rng):
    """Integers: equal to the reference, with many ties."""
    batch = make_batch(lens, PAGE, rng)
    q, k = (t.to(CUDA) for t in selector_inputs(batch, 4, True, rng))
    k = k.to(pages)
    out = ops.select_blocks(q, k, *batch.arguments(CUDA), *numbers)
    assert_equal(out, reference.select_blocks(q, k, *batch.arguments(CUDA), *numbers))


@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("lens", [[(300, 3500)], [(260, 34_000), (20, 3000)]], ids=["scores", "lists"])
def test_select_normal(lens, pages, rng):
    batch = make_batch(lens, PAGE, rng)
    q, k = selector_inputs(batch, 4, False, rng)
    k = k.to(pages)
    out = ops.select_blocks(to_cuda(q), k.to(CUDA), *batch.arguments(CUDA), 16, 0, 1).cpu()
    expected = reference.select_blocks(q, k, *batch.arguments(CPU), 16, 0, 1)
    assert_same_up_to_rounding(out, expected, batch, q, k.double())


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("pages", PAGES)
def test_select_heads(pages, heads, rng):
    for context in (5000, 34_000):
        batch = make_batch([(333, context)], PAGE, rng)
        q, k = (t.to(CUDA) for t in selector_inputs(batch, heads, True, rng))
        k = k.to(pages)
        out = ops.select_blocks(q, k, *batch.arguments(CUDA), 16, 0, 1)
        assert_equal(out, reference.select_blocks(q, k, *batch.arguments(CUDA), 16, 0, 1))


@pytest.mark.parametrize("context", [5000, 33_000])
@pytest.mark.parametrize("value", [float("nan"), -448.0, 448.0, 0.0, 2.0**-9])
@pytest.mark.parametrize("pages", PAGES)
def test_select_equal_scores(pages, value, context, rng):
    """All scores equal or NaN, the queries huge: the lowest ids win."""
    batch = make_batch([(40, context)], PAGE, rng)
    q = torch.zeros(40, 4, DIM, dtype=torch.bfloat16, device=CUDA)
    q[..., 0] = 1e35
    k = torch.full((batch.num_blocks, PAGE, DIM), 1.0, device=CUDA)
    k[..., 0] = value
    out = ops.select_blocks(q, k.to(pages), *batch.arguments(CUDA), 16, 0, 1).cpu()
    for token in range(40):
        own = (context - 40 + token) // PAGE
        assert out[token].tolist() == [[*range(15), own]] * 4


@pytest.mark.parametrize("pages", PAGES)
def test_select_descending_scores(pages, rng):
    """Every block replaces none, or every block replaces one: scores that fall and rise with the block."""
    batch = make_batch([(40, 33_000)], PAGE, rng)
    own = (33_000 - 40 + torch.arange(40)) // PAGE
    table = batch.block_table[0, :258].long()
    for sign in (1, -1):
        k = torch.zeros(batch.num_blocks, PAGE, DIM)
        # 258 different values that e4m3 holds as sums: 32 coarse and 16 fine steps.
        k[table, :, 0] = (torch.arange(258)[:, None] // 16).float()
        k[table, :, 1] = (torch.arange(258)[:, None] % 16).float()
        q = torch.zeros(40, 4, DIM, dtype=torch.bfloat16)
        q[..., 0], q[..., 1] = 16 * sign, sign
        out = ops.select_blocks(q.to(CUDA), k.to(pages).to(CUDA), *batch.arguments(CUDA), 16, 0, 1).cpu()
        for token in range(40):
            last = int(own[token])
            best = range(last - 15, last) if sign > 0 else range(15)
            assert out[token].tolist() == [[*best, last]] * 4


@pytest.mark.parametrize("heads", [(64, 4), (12, 2), (3, 3)], ids=["16", "6", "1"])
@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("lens", [*PREFILLS, pytest.param(MIXED, id="ragged")])
def test_dense(lens, pages, heads, rng):
    batch = make_batch(lens, PAGE, rng)
    Inputs(batch, *heads, pages, rng).check(batch, None)


@pytest.mark.parametrize("size", [0.0, 1e-30, 30.0, 3e4])
@pytest.mark.parametrize("pages", PAGES)
def test_dense_score_range(pages, size, rng):
    batch = make_batch([(40, 700), (16, 300)], PAGE, rng)
    inputs = Inputs(batch, 32, 2, pages, rng)
    inputs.q *= size
    inputs.check(batch, None, 1.0)


def test_dense_rows_of_any_size(rng):
    """Queries of one call that differ by 2^60: each row has its own scale in f16."""
    batch = make_batch([(200, 900)], PAGE, rng)
    inputs = Inputs(batch, 32, 2, FP8, rng)
    inputs.q *= (2.0 ** torch.randint(-50, 11, (*inputs.q.shape[:2], 1), generator=rng)).to(CUDA)
    inputs.check(batch, None)


@pytest.mark.parametrize("pages", PAGES)
def test_repetition(pages, rng):
    batch = make_batch([(700, 5000), (300, 34_000)], PAGE, rng)
    inputs = Inputs(batch, 32, 2, pages, rng)
    index_q, index_k = (t.to(CUDA) for t in selector_inputs(batch, 4, False, rng))
    index_k = index_k.to(pages)
    first = None
    for _ in range(5):
        out = (
            inputs.run(batch, slice(None), None),
            ops.select_blocks(index_q, index_k, *batch.arguments(CUDA), 16, 0, 1),
        )
        first = first or out
        for ours, expected in zip(out, first, strict=True):
            assert_equal(ours, expected)


def test_graph_follows_lengths(rng):
    """Captured lists, replayed after the lengths have changed, give what a fresh call gives."""
    batch = make_batch([(600, 40_000), (40, 3000)], PAGE, rng)
    q, k = (t.to(CUDA) for t in selector_inputs(batch, 4, False, rng))
    table, bounds, seq_lens, longest = batch.arguments(CUDA)
    long = seq_lens.clone()
    out = torch.empty(batch.num_tokens, 4, 16, dtype=torch.int32, device=CUDA)

    def run() -> torch.Tensor:
        return ops.select_blocks(q, k, table, bounds, seq_lens, longest, 16, 0, 1)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for shift in (0, 1, 130, 2000):
        seq_lens.copy_(long - shift)
        for _ in range(2):
            out.fill_(-7)
            graph.replay()
            assert_equal(out, run(), name=f"lengths less {shift}")


def test_tokens_of_no_sequence(rng):
    """Rows behind the last sequence choose nothing."""
    batch: PagedBatch = make_batch([(100, 33_000)], PAGE, rng)
    q, k = (t.to(CUDA) for t in selector_inputs(batch, 4, False, rng))
    out = ops.select_blocks(torch.cat([q, q]), k, *batch.arguments(CUDA), 16, 0, 1)
    assert (out[100:] == -1).all()
    assert_equal(out[:100], ops.select_blocks(q, k, *batch.arguments(CUDA), 16, 0, 1))


@pytest.mark.parametrize("context", [3000, 34_000], ids=["scores", "lists"])
@pytest.mark.parametrize("pages", PAGES)
def test_fixed_split_selects_by_the_same_bits(pages, context, rng):
    """Scores that differ by rounding alone: every block holds one vector, its dimensions in another order.

    A token picks the same blocks in a prompt, in a chunk of it, as a draft and on its own.
    """
    tokens = 200
    batch = make_batch([(tokens, context), (70, 2500)], PAGE, rng)
    q = torch.ones(batch.num_tokens, 4, DIM, dtype=torch.bfloat16) * torch.tensor([1.0, 3, -1, 0.01])[:, None]
    vector = torch.randn(DIM, generator=rng) * 2.0 ** torch.randint(-9, 5, (DIM,), generator=rng)
    k = torch.stack([vector[torch.randperm(DIM, generator=rng)] for _ in range(batch.num_blocks)])
    k = k[:, None].expand(-1, PAGE, -1).contiguous().to(pages).to(CUDA)
    q = q.bfloat16().to(CUDA)

    def run(part: PagedBatch, rows: slice) -> torch.Tensor:
        return ops.select_blocks(q[rows], k, *part.arguments(CUDA), 16, 0, 1, fixed_split=True)

    whole = run(batch, slice(None))
    for first, end in [(0, 200), (30, 121), (64, 72), (199, 200), (0, 1), (128, 130)]:
        part = batch.take(0, end - first, context - tokens + end)
        assert_equal(run(part, slice(first, end)), whole[first:end], name=f"rows {first} to {end}")


@pytest.mark.parametrize("heads", [(64, 4), (12, 2)], ids=["16", "6"])
@pytest.mark.parametrize("pages", PAGES)
def test_fixed_split_of_long_contexts(pages, heads, rng):
    """Parts by a second kernel or one after the other: the same bits, in chunks and alone, and right."""
    lens = [(300, 9000), (1, 5000), (17, 1025), (40, 1030), (0, 3)]
    batch = make_batch(lens, PAGE, rng)
    inputs = Inputs(batch, *heads, pages, rng)
    whole = inputs.check(batch, None, fixed_split=True)
    for seq, (q_len, seq_len) in enumerate(lens):
        begin = batch.rows(seq).start
        for first, end in [
            (0, 1),
            (0, q_len),
            (q_len // 3, q_len // 2),
            (q_len - 8, q_len),
            (q_len - 1, q_len),
        ]:
            if not 0 <= first < end <= q_len:
                continue
            part = batch.take(seq, end - first, seq_len - q_len + end)
            rows = slice(begin + first, begin + end)
            out = inputs.run(part, rows, None, fixed_split=True)
            assert_equal(out, whole[rows], name=f"rows {first} to {end} of sequence {seq}")


@pytest.mark.parametrize("blocks", ["random", "overlapping"])
@pytest.mark.parametrize("pages", PAGES)
def test_fixed_split_of_sparse_prompts(pages, blocks, rng):
    """Lists per block in chunks, an item per choice in decodes: the same bits, and right."""
    lens = [(700, 9000), (1, 5000), (300, 300), (7, 2300), (40, 12_000), (0, 3)]
    batch = make_batch(lens, PAGE, rng)
    inputs = Inputs(batch, 32, 2, pages, rng)
    ids = random_blocks(batch, 2, 16, rng)
    if blocks == "overlapping":
        ids = overlapping_blocks(batch, 2, 16, 20, rng)
    ids = ids.to(CUDA)
    whole = inputs.check(batch, ids, fixed_split=True)
    for seq, (q_len, seq_len) in enumerate(lens):
        begin = batch.rows(seq).start
        for first, end in [
            (0, 1),
            (0, q_len),
            (q_len // 3, q_len // 2),
            (q_len // 2, q_len),
            (q_len - 1, q_len),
        ]:
            if not 0 <= first < end <= q_len:
                continue
            part = batch.take(seq, end - first, seq_len - q_len + end)
            rows = slice(begin + first, begin + end)
            out = inputs.run(part, rows, ids, fixed_split=True)
            assert_equal(out, whole[rows], name=f"rows {first} to {end} of sequence {seq}")


@pytest.mark.parametrize("fixed_split", [False, True])
def test_sizes_of_values(fixed_split, rng):
    """Dimensions of very different sizes, values of zero, and a row of nothing else."""
    batch = make_batch([(600, 9000), (1, 3000)], PAGE, rng)
    inputs = Inputs(batch, 32, 2, torch.bfloat16, rng)
    inputs.v *= 2.0 ** torch.linspace(-20, 20, DIM, device=CUDA)
    inputs.v[:, 1] = 0
    inputs.v[1::2, :, :, 3::5] = 0
    out = inputs.check(batch, random_blocks(batch, 2, 16, rng).to(CUDA), fixed_split=fixed_split)
    assert (out[:, 16:] == 0).all()
