"""Decode kernels ask for their first pages by lengths and page tables as they are before the kernels in front
of them are done. What those kernels write there must count all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmx import ops
from ops.compare import assert_equal
from ops.paged import ABSURD, make_batch
from ops.test_attention_sm90 import CUDA, DIM, PAGE, SCALE, draw

pytestmark = pytest.mark.cuda
WIDTH = 32  # blocks that the writer lists: 0 to 31, for a context of as many


class Writer:
    """Writes 0 to 31 into both rows of ``rows``, late: the selector's last kernel lets the next op start
    while its first one still reads the keys of 60 other sequences."""

    def __init__(self, rng: torch.Generator) -> None:
        batch = make_batch([(1, WIDTH * PAGE)] * 2 + [(1, 30_000)] * 60, PAGE, rng)
        self.q = draw(rng, batch.num_tokens, 1, DIM).bfloat16().to(CUDA)
        self.k = torch.randn(
            batch.num_blocks, PAGE, DIM, device=CUDA, dtype=torch.bfloat16
        )  # values do not matter
        self.arguments = batch.arguments(CUDA)
        self.out = torch.empty(batch.num_tokens, 1, WIDTH, dtype=torch.int32, device=CUDA)
        self.rows = self.out.view(-1, WIDTH)[:2]

    def write(self) -> None:
        ops.select_blocks(self.q, self.k, *self.arguments, WIDTH, 0, 1, out=self.out)

    def check(self, run: Callable[[], torch.Tensor], stale: torch.Tensor | int) -> None:
        """``run`` behind the writer gives what it gives later; ``rows`` hold ``stale`` before."""
        self.write()
        torch.cuda.synchronize()
        assert self.rows.tolist() == [list(range(WIDTH))] * 2
        expected = run()
        for _ in range(8):
            self.rows[:] = stale
            torch.cuda.synchronize()
            self.write()
            assert_equal(run(), expected)


# Sparse attention: thread blocks with one page each, or a cluster of two that take turns with their slots.
OPS = ["paged_attention", "select_blocks", "sparse_attention of 16", "sparse_attention of 2"]


def runner(
    op: str, table: torch.Tensor, cu: torch.Tensor, lens: torch.Tensor, rng: torch.Generator
) -> Callable[[], torch.Tensor]:
    """One token each of ``len(lens)`` sequences over 64 pages; sparse attention to their first blocks."""
    tail = (table, cu, lens, 1)
    q = draw(rng, len(lens), 32, DIM).bfloat16().to(CUDA)
    k, v = (draw(rng, 64, 2, PAGE, DIM).bfloat16().to(CUDA) for _ in range(2))
    if op == "select_blocks":
        index_k = k[:, 0].contiguous()
        return lambda: ops.select_blocks(q[:, :4], index_k, *tail, 4, 0, 1)
    if op == "paged_attention":
        return lambda: ops.paged_attention(q, k, v, *tail, SCALE)
    ids = torch.full((len(lens), 2, int(op.split()[-1])), -1, dtype=torch.int32, device=CUDA)
    ids[..., 0] = 0
    return lambda: ops.sparse_attention(q, k, v, ids, *tail, SCALE)


def one_each(tokens: int) -> torch.Tensor:
    return torch.arange(tokens + 1, dtype=torch.int32, device=CUDA)


@pytest.fixture
def tables(rng: torch.Generator) -> torch.Tensor:
    return torch.randint(64, (8, WIDTH), generator=rng, dtype=torch.int32).to(CUDA)


@pytest.mark.parametrize("absurd", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_page_table(op, absurd, rng):
    writer = Writer(rng)
    lens = torch.tensor([WIDTH * PAGE - 5, 20 * PAGE], dtype=torch.int32, device=CUDA)
    reverse = 63 - torch.arange(2 * WIDTH, device=CUDA).view(2, WIDTH)
    writer.check(runner(op, writer.rows, one_each(2), lens, rng), ABSURD if absurd else reverse)


@pytest.mark.parametrize("stale", [-ABSURD, 0, 700, 20 * PAGE, ABSURD])
@pytest.mark.parametrize("op", OPS)
def test_lengths(op, stale, tables, rng):
    """Eight sequences whose lengths become 1 to 8."""
    writer = Writer(rng)
    writer.check(runner(op, tables, one_each(8), writer.rows[0, 1:9], rng), stale)


@pytest.mark.parametrize("stale", [-ABSURD, 0, 8, ABSURD])
@pytest.mark.parametrize("op", OPS)
def test_query_bounds(op, stale, tables, rng):
    """The bounds become 0 to 8."""
    writer = Writer(rng)
    lens = torch.randint(5 * PAGE, WIDTH * PAGE, (8,), generator=rng, dtype=torch.int32).to(CUDA)
    writer.check(runner(op, tables, writer.rows[0, :9], lens, rng), stale)
