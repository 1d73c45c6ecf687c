"""Decode kernels for Hopper on both page types, and the fixed split: the bits of a row in any batch."""

from __future__ import annotations

import pytest
import torch

from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal
from ops.paged import PagedBatch, make_batch
from ops.test_attention_sm90 import (
    CUDA,
    DECODES,
    DIM,
    PAGE,
    PREFILLS,
    SCALE,
    draw,
    overlapping_blocks,
    random_blocks,
    selector_inputs,
    strided,
    to_cuda,
)
from ops.test_selector import assert_selected

pytestmark = pytest.mark.cuda
FP8 = torch.float8_e4m3fn
PAGES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(FP8, id="fp8")]
MIXED = [(1, 4000), (8, 2100), (300, 2500), (1, 129), (20, 3000), (0, 5)]


class Inputs:
    """Attention inputs of a batch; fp8 pages come with scales, unused slots hold NaN."""

    def __init__(
        self, batch: PagedBatch, heads: int, kv_heads: int, pages: torch.dtype, rng: torch.Generator
    ) -> None:
        shape = (batch.num_blocks, kv_heads, PAGE, DIM)
        size = 40 if pages == FP8 else 1
        self.q = to_cuda(strided(rng, batch.num_tokens, heads))
        self.k, self.v = (
            (batch.poison_unused(draw(rng, *shape), 2) * size).to(pages).to(CUDA) for _ in range(2)
        )
        self.named: dict[str, torch.Tensor] = {}
        if pages == FP8:
            scales = ((torch.rand(kv_heads, generator=rng) + 0.5).to(CUDA) / size for _ in range(2))
            self.named = dict(zip(("k_scale", "v_scale"), scales, strict=True))

    def run(
        self,
        batch: PagedBatch,
        rows: slice,
        ids: torch.Tensor | None,
        scale: float = SCALE,
        fixed_split: bool = False,
    ) -> torch.Tensor:
        args, tail = (self.q[rows], self.k, self.v), (*batch.arguments(CUDA), scale)
        if ids is None:
            return ops.paged_attention(*args, *tail, **self.named, fixed_split=fixed_split)
        return ops.sparse_attention(*args, ids[rows], *tail, **self.named, fixed_split=fixed_split)

    def check(
        self, batch: PagedBatch, ids: torch.Tensor | None, scale: float = SCALE, fixed_split: bool = False
    ) -> torch.Tensor:
        out = self.run(batch, slice(None), ids, scale, fixed_split)
        name = "paged_attention" if ids is None else "sparse_attention"
        chosen = () if ids is None else (ids,)
        tail = (*chosen, *batch.arguments(CUDA), scale)
        run = getattr(reference, name)
        wide = {key: value.double() for key, value in self.named.items()}
        truth = run(self.q.double(), self.k.double(), self.v.double(), *tail, **wide)
        # What bf16 arithmetic loses: queries, values and the result in bf16.
        values = (
            c.float() * s[:, None, None] if s is not None else c
            for c, s in ((self.k, self.named.get("k_scale")), (self.v, self.named.get("v_scale")))
        )
        same = run(self.q, *(c.bfloat16() for c in values), *tail)
        assert_close_to_truth(out, truth, same)
        return out


@pytest.mark.parametrize("heads", [(64, 4), (12, 2), (3, 3)], ids=["16", "6", "1"])
@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("lens", DECODES)
def test_attention(lens, pages, heads, rng):
    batch = make_batch(lens, PAGE, rng)
    inputs = Inputs(batch, *heads, pages, rng)
    ids = random_blocks(batch, heads[1], 16, rng).to(CUDA)
    for fixed_split in (False, True):
        inputs.check(batch, ids, fixed_split=fixed_split)
        inputs.check(batch, None, fixed_split=fixed_split)


@pytest.mark.parametrize("pages", PAGES)
def test_prompts(pages, rng):
    batch = make_batch(MIXED, PAGE, rng)
    inputs = Inputs(batch, 32, 2, pages, rng)
    inputs.check(batch, random_blocks(batch, 2, 16, rng).to(CUDA))
    inputs.check(batch, None)


@pytest.mark.parametrize("blocks", ["random", "overlapping", "both"])
@pytest.mark.parametrize("lens", [*PREFILLS, pytest.param([(1, 300), (517, 9400), (40, 3000)], id="long")])
def test_sparse_prompts(lens, blocks, rng):
    """Codes in tiles of neighbours that share blocks, in lists of queries per block, and in both."""
    batch = make_batch(lens, PAGE, rng)
    inputs = Inputs(batch, 32, 2, FP8, rng)
    ids = random_blocks(batch, 2, 16, rng)
    if blocks != "random":
        shared = overlapping_blocks(batch, 2, 16, 20, rng)
        apart = torch.arange(len(ids))[:, None, None] // 50 % 2 == 0
        ids = torch.where(apart, ids, shared) if blocks == "both" else shared
    inputs.check(batch, ids.to(CUDA))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 40, 130])
@pytest.mark.parametrize("pages", PAGES)
def test_sparse_batches(pages, tokens, rng):
    """Every way to share a token's pages among thread blocks, and blocks that take several tokens."""
    batch = make_batch([(1, 100 + 2600 * i // tokens) for i in range(1, tokens + 1)], PAGE, rng)
    inputs = Inputs(batch, 64, 4, pages, rng)
    inputs.check(batch, random_blocks(batch, 4, 16, rng).to(CUDA))


@pytest.mark.parametrize("fixed_split", [False, True])
@pytest.mark.parametrize("integers", [True, False], ids=["integers", "normal"])
@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("lens", [*DECODES, pytest.param(MIXED, id="mixed")])
def test_select_blocks(lens, pages, integers, fixed_split, rng):
    batch = make_batch(lens, PAGE, rng)
    q, k = selector_inputs(batch, 4, integers, rng)
    k = k.to(pages)
    numbers = (16, 0, 1)
    arguments = (*batch.arguments(CUDA), *numbers)
    out = ops.select_blocks(to_cuda(q), k.to(CUDA), *arguments, fixed_split=fixed_split).cpu()
    expected = reference.select_blocks(q, k, *batch.arguments(torch.device("cpu")), *numbers)
    assert_selected(out, expected, integers, batch, q, k.double())


def test_random_shapes(rng):
    """200 calls of each op on fp8 pages: one to five sequences, decodes, drafts, chunks and empty ones."""

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    for _ in range(200):
        lens = [
            (min(pick(0, 1, 1, 2, 8, 60), length), length)
            for length in (pick(1, 2, 127, 128, 129, 255, 300, 700, 1025) for _ in range(pick(1, 2, 5)))
        ]
        batch = make_batch(lens, PAGE, rng)
        if batch.num_tokens == 0:
            continue
        kv_heads, topk = pick(1, 2), pick(1, 2, 4, 7)
        inputs = Inputs(batch, kv_heads * pick(1, 6, 16, 16), kv_heads, FP8, rng)
        fixed_split = bool(pick(0, 1))
        inputs.check(batch, random_blocks(batch, kv_heads, topk, rng).to(CUDA), fixed_split=fixed_split)
        inputs.check(batch, None, fixed_split=fixed_split)
        q, k = selector_inputs(batch, pick(1, 2, 4), True, rng)
        out = ops.select_blocks(
            to_cuda(q), k.to(FP8).to(CUDA), *batch.arguments(CUDA), topk, 0, 1, fixed_split=fixed_split
        )
        expected = reference.select_blocks(q, k, *batch.arguments(torch.device("cpu")), topk, 0, 1)
        assert_equal(out, expected)


@pytest.mark.parametrize("pages", PAGES)
def test_row_does_not_depend_on_its_batch(pages, rng):
    """With fixed_split: whole batch = sequences alone = chunks of them, bit for bit."""
    batch = make_batch(MIXED, PAGE, rng)
    inputs = Inputs(batch, 32, 2, pages, rng)
    ids = random_blocks(batch, 2, 16, rng).to(CUDA)
    index_q, index_k = (t.to(CUDA) for t in selector_inputs(batch, 4, False, rng))
    index_k = index_k.to(pages)

    def run(part: PagedBatch, rows: slice) -> list[torch.Tensor]:
        return [
            inputs.run(part, rows, ids, fixed_split=True),
            inputs.run(part, rows, None, fixed_split=True),
            ops.select_blocks(index_q[rows], index_k, *part.arguments(CUDA), 16, 0, 1, fixed_split=True),
        ]

    whole = run(batch, slice(None))
    for seq, (q_len, seq_len) in enumerate(MIXED):
        begin = batch.rows(seq).start
        for first, end in [(0, q_len)] + [(q_len // 3, q_len // 2), (q_len - 1, q_len)] * (q_len > 4):
            if first == end:
                continue
            part = batch.take(seq, end - first, seq_len - q_len + end)
            part.block_table = part.block_table[:, : -(-part.seq_lens[0] // PAGE)]
            rows = slice(begin + first, begin + end)
            for name, out, all_rows in zip(
                ("sparse", "paged", "select"), run(part, rows), whole, strict=True
            ):
                assert_equal(out, all_rows[rows], name=f"{name}, rows {first} to {end} of sequence {seq}")


@pytest.mark.parametrize("size", [0.0, 1e-30, 30.0, 3e4])
@pytest.mark.parametrize("pages", PAGES)
def test_score_range(pages, size, rng):
    batch = make_batch([(1, 700), (2, 300)], PAGE, rng)
    inputs = Inputs(batch, 32, 2, pages, rng)
    inputs.q *= size
    inputs.check(batch, random_blocks(batch, 2, 4, rng).to(CUDA), 1.0)
    inputs.check(batch, None, 1.0)


@pytest.mark.parametrize("value", [float("nan"), -448.0, 448.0, 0.0, 2.0**-9])
def test_select_equal_codes(value, rng):
    """All scores equal or NaN, the queries huge: the lowest ids win."""
    batch = make_batch([(2, 5000)], PAGE, rng)
    q = torch.zeros(2, 4, DIM, dtype=torch.bfloat16, device=CUDA)
    q[..., 0] = 1e35
    k = torch.full((batch.num_blocks, PAGE, DIM), 1.0, device=CUDA)
    k[..., 0] = value
    out = ops.select_blocks(q, k.to(FP8), *batch.arguments(CUDA), 16, 0, 1).cpu()
    assert out.tolist() == [[[*range(15), 39]] * 4] * 2
