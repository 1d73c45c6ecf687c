from __future__ import annotations

from typing import Any

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from mmx.ops.reference.selector import block_scores
from ops.compare import assert_equal
from ops.paged import PagedBatch, draw_batch, draw_lens, make_batch

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
VALUES = [pytest.param(True, id="integers"), pytest.param(False, id="normal")]


def make(
    batch: PagedBatch, heads: int, dim: int, dtype: torch.dtype, integers: bool, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """index_q [num_tokens, heads, dim] with a gap after each head, index_k_cache.

    Products of small integers are exact in any order of summation, and their scores tie often.
    """

    def draw(*shape: int) -> torch.Tensor:
        return (
            torch.randint(-2, 3, shape, generator=rng).float()
            if integers
            else torch.randn(shape, generator=rng)
        )

    q = draw(batch.num_tokens, heads, dim + 5)[:, :, :dim]
    return q.to(dtype), batch.poison_unused(draw(batch.num_blocks, batch.block_size, dim), 1).to(dtype)


def assert_same_up_to_rounding(
    out: torch.Tensor, expected: torch.Tensor, batch: PagedBatch, q: torch.Tensor, k_cache: torch.Tensor
) -> None:
    """A block may replace another one only if their scores lie within the rounding of a dot product."""
    for seq, seq_len in enumerate(batch.seq_lens):
        rows = batch.rows(seq)
        if rows.start == rows.stop or torch.equal(out[rows], expected[rows]):
            continue
        pages = batch.block_table[seq, : -(-seq_len // batch.block_size)].long()
        keys = k_cache[pages].flatten(0, 1)[:seq_len].double()
        scores = block_scores(q[rows].double(), keys, batch.block_size)
        bound = 2 * q.shape[-1] * 2**-24 * block_scores(q[rows].double().abs(), keys.abs(), batch.block_size)
        for token, head in (out[rows] != expected[rows]).any(-1).nonzero().tolist():
            ours, theirs = (set(t[rows][token, head].tolist()) for t in (out, expected))
            assert len(ours) == len(theirs), f"row {rows.start + token}, head {head}: {ours} against {theirs}"
            changed = sorted(ours ^ theirs)
            spread = scores[token, head, changed].max() - scores[token, head, changed].min()
            assert spread <= bound[token, head, changed].max(), (
                f"row {rows.start + token}, head {head}: {ours - theirs} chosen instead of {theirs - ours}, "
                f"scores {spread:.3g} apart"
            )


def assert_selected(out: torch.Tensor, expected: torch.Tensor, integers: bool, *scored: Any) -> None:
    """Exactly these blocks for ``integers``, else those that ``assert_same_up_to_rounding`` allows."""
    if integers:
        assert_equal(out, expected)
    else:
        assert_same_up_to_rounding(out, expected, *scored)


@pytest.mark.parametrize("integers", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("selector", "select_blocks"))
def test_select_blocks(dims, dtype, integers, device, rng):
    batch = draw_batch(dims, rng)
    q, k = make(batch, dims["num_index_heads"], dims["index_dim"], dtype, integers, rng)
    numbers = (dims["topk"], dims["init_blocks"], dims["local_blocks"])
    out = ops.select_blocks(q.to(device), k.to(device), *batch.arguments(device), *numbers).cpu()
    expected = reference.select_blocks(q, k, *batch.arguments(torch.device("cpu")), *numbers)
    assert_selected(out, expected, integers, batch, q, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_shapes(dtype, device, rng):
    """100 shapes for each dtype, integer scores: exact, with many ties."""

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    for _ in range(100):
        batch = make_batch(
            draw_lens(pick(1, 2, 6), pick(1, 3, 17), pick(17, 64, 200), rng), pick(1, 4, 8, 20), rng
        )
        q, k = make(batch, pick(1, 2, 4, 5), pick(1, 8, 16, 40, 128), dtype, True, rng)
        init_blocks, local_blocks = pick(0, 0, 1, 2), pick(1, 1, 2, 3)
        numbers = (init_blocks + local_blocks + pick(0, 1, 4, 13), init_blocks, local_blocks)
        out = ops.select_blocks(q.to(device), k.to(device), *batch.arguments(device), *numbers)
        assert_equal(out, reference.select_blocks(q, k, *batch.arguments(torch.device("cpu")), *numbers))


def select(scores: list[float], topk: int, device: torch.device, init: int = 0, local: int = 1) -> list[int]:
    """Blocks chosen by one decode token whose blocks of one token have the given scores."""
    count = len(scores)
    q = torch.ones(1, 1, 1, device=device)
    k = torch.tensor(scores, dtype=torch.float32, device=device).view(count, 1, 1)
    table = torch.arange(count, dtype=torch.int32, device=device).view(1, count)
    bounds = torch.tensor([0, 1], dtype=torch.int32, device=device)
    lens = torch.tensor([count], dtype=torch.int32, device=device)
    return ops.select_blocks(q, k, table, bounds, lens, 1, topk, init, local)[0, 0].tolist()


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("scores", "topk", "init", "local", "expected"),
    [
        pytest.param([1, 5, 5, 5, 0], 3, 0, 1, [1, 2, 4], id="lower-id-wins-a-tie"),
        pytest.param([0.0, -0.0, 0.0, -1, 0], 3, 0, 1, [0, 1, 4], id="signed-zeros-tie"),
        pytest.param([NAN, -7, NAN, -8, 0], 3, 0, 1, [1, 3, 4], id="nan-is-last"),
        pytest.param([NAN, -INF, NAN, -INF, 0], 3, 0, 1, [0, 1, 4], id="nan-ties-with-minus-infinity"),
        pytest.param([-INF] * 6, 4, 0, 1, [0, 1, 2, 5], id="all-minus-infinity"),
        pytest.param([NAN] * 6, 4, 0, 1, [0, 1, 2, 5], id="all-nan"),
        pytest.param([INF, 3e38, INF, -3e38, -INF], 3, 0, 1, [0, 2, 4], id="infinity-does-not-beat-forced"),
        pytest.param([-3e38, 3e38, 2.9e38, -INF, NAN], 3, 0, 1, [1, 2, 4], id="huge"),
        pytest.param([-9, 9, 8, 7, 6, -9, -9], 4, 1, 2, [0, 1, 5, 6], id="forced-first-and-last"),
        pytest.param([1, 2, 3], 5, 0, 1, [0, 1, 2, -1, -1], id="fewer-than-topk"),
        pytest.param([1, 2], 6, 3, 3, [0, 1, -1, -1, -1, -1], id="forced-beyond-visible"),
        pytest.param([4, 3, 2, 1], 1, 0, 1, [3], id="only-forced"),
    ],
)
def test_order(scores, topk, init, local, expected, device):
    assert select(scores, topk, device, init, local) == expected


def test_row_does_not_depend_on_its_batch(device, rng):
    """Whole prompt = chunks = single tokens = alone."""
    batch = make_batch([(1, 90), (50, 301), (20, 20)], 8, rng)
    q, k = (t.to(device) for t in make(batch, 2, 40, torch.float32, False, rng))
    whole = ops.select_blocks(q, k, *batch.arguments(device), 4, 0, 1)
    rows = batch.rows(1)
    done = 0
    for size in (1, 13, 33, 1, 1, 1):
        part = slice(rows.start + done, rows.start + done + size)
        chunk = batch.take(1, size, 251 + done + size)
        out = ops.select_blocks(q[part], k, *chunk.arguments(device), 4, 0, 1)
        assert_equal(out, whole[part], name=f"chunk of {size} after {done}")
        done += size


def test_thread_count_and_repetition(rng):
    batch = make_batch([(40, 900), (1, 700), (1, 3)], 8, rng)
    q, k = make(batch, 4, 64, torch.bfloat16, False, rng)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(ops.select_blocks(q, k, *batch.arguments(torch.device("cpu")), 16, 0, 1))
    finally:
        torch.set_num_threads(threads)
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


def test_names_what_is_wrong(device, rng):
    batch = make_batch([(2, 9)], 8, rng)
    q, k = (t.to(device) for t in make(batch, 2, 16, torch.float32, False, rng))
    tail = batch.arguments(device)
    with pytest.raises(RuntimeError, match=r"select_blocks: index_k_cache must be \[.*index_dim=16\], got"):
        ops.select_blocks(q, k[..., :15].contiguous(), *tail, 4, 0, 1)
    with pytest.raises(RuntimeError, match=r"select_blocks: init_blocks=3 and local_blocks=2 must .* topk=4"):
        ops.select_blocks(q, k, *tail, 4, 3, 2)


def test_opcheck(device, rng):
    batch = make_batch([(2, 9), (1, 5)], 8, rng)
    q, k = (t.to(device) for t in make(batch, 2, 16, torch.float32, False, rng))
    block_table, cu_seqlens_q, seq_lens, max_seqlen_q = batch.arguments(device)
    ids = torch.empty(3, 2, 4, dtype=torch.int32, device=device)
    tensors, numbers = (ids, q, k, block_table, cu_seqlens_q, seq_lens), (max_seqlen_q, 0, 1)
    scratch = ops._lib.workspace("select_blocks", device, *tensors, *numbers)
    torch.library.opcheck(torch.ops.mmx.select_blocks.default, (*tensors, scratch, *numbers))
