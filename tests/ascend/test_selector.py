"""The AscendC block selector on the emulator: the shared cases against the shared reference."""

from __future__ import annotations

import pytest
import torch

from ascend.emulated import RefusedError
from cases import load
from mmx.ops import reference
from ops.compare import POISON, assert_equal
from ops.paged import draw_batch, make_batch
from ops.test_selector import VALUES, assert_selected, make

BF16 = torch.bfloat16
CPU = torch.device("cpu")
ABSURD = torch.iinfo(torch.int32).min


def values(ids, q, k, batch, topk, init_blocks, local_blocks):
    table, bounds, lens, max_q = batch.arguments(CPU)
    return {
        "block_ids": ids,
        "index_q": q,
        "index_k_cache": k,
        "block_table": table,
        "cu_seqlens_q": bounds,
        "seq_lens": lens,
        "num_tokens": q.shape[0],
        "num_seqs": len(batch.q_lens),
        "num_index_heads": q.shape[1],
        "index_dim": q.shape[2],
        "num_blocks": k.shape[0],
        "block_size": k.shape[1],
        "max_blocks_per_seq": table.shape[1],
        "topk": topk,
        "init_blocks": init_blocks,
        "local_blocks": local_blocks,
        "max_seqlen_q": max_q,
        "index_q_token_stride": q.stride(0),
        "index_q_head_stride": q.stride(1),
        "cache_block_stride": k.stride(0),
        "block_table_stride": table.stride(0),
        "dtype": BF16,
        "cache_dtype": k.dtype,
    }


def select(run_all, batch, q, k, *numbers):
    def run():
        ids = torch.full((*q.shape[:2], numbers[0]), ABSURD, dtype=torch.int32)
        return values(ids, q, k, batch, *numbers), [ids]

    (ids,) = run_all("select_blocks", "SelectBlocksParams", run)
    return ids


def taken() -> list:
    return [
        c
        for c in load("selector", "select_blocks")
        if c.values[0]["num_seqs"] and c.values[0]["index_dim"] % 16 == 0 and c.values[0]["block_size"] >= 64
    ]


@pytest.mark.parametrize("integers", VALUES)
@pytest.mark.parametrize("dims", taken())
def test_select_blocks(dims, integers, run_all, rng):
    batch = draw_batch(dims, rng)
    q, k = make(batch, dims["num_index_heads"], dims["index_dim"], BF16, integers, rng)
    numbers = (dims["topk"], dims["init_blocks"], dims["local_blocks"])
    out = select(run_all, batch, q, k, *numbers)
    expected = reference.select_blocks(q, k, *batch.arguments(CPU), *numbers)
    assert_selected(out, expected, integers, batch, q, k)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 2047, 2048, 2049, 4097, 33 * 128])
def test_lengths_around_blocks(length, run_all, rng):
    """Few blocks are all kept; stale keys behind the last token are NaN."""
    batch = make_batch([(min(3, length), length), (1, 2200)], 128, rng)
    q, k = make(batch, 4, 128, BF16, True, rng)
    out = select(run_all, batch, q, k, 16, 0, 1)
    assert_equal(out, reference.select_blocks(q, k, *batch.arguments(CPU), 16, 0, 1))


def test_longer_than_one_sort(run_all, rng):
    """More blocks than are sorted at a time: the kept of each part are merged."""
    batch = make_batch([(2, 64 * 4500)], 64, rng)
    q, k = make(batch, 2, 16, BF16, True, rng)
    out = select(run_all, batch, q, k, 16, 1, 2)
    assert_equal(out, reference.select_blocks(q, k, *batch.arguments(CPU), 16, 1, 2))


INF, NAN = float("inf"), float("nan")
ORDER = {
    "lower id wins a tie": ([1, 5, 5, 5, 0], 3, 0, 1, [1, 2, 4]),
    "nan is last": ([NAN, -7, NAN, -8, 0], 3, 0, 1, [1, 3, 4]),
    "nan ties with minus infinity": ([NAN, -INF, NAN, -INF, 0], 3, 0, 1, [0, 1, 4]),
    "infinity does not beat forced": ([INF, 3e38, INF, -3e38, -INF], 3, 0, 1, [0, 2, 4]),
    "forced first and last": ([-9, 9, 8, 7, 6, -9, -9], 4, 1, 2, [0, 1, 5, 6]),
    "fewer than topk": ([1, 2, 3], 5, 0, 1, [0, 1, 2, -1, -1]),
    "all nan": ([NAN] * 6, 4, 0, 1, [0, 1, 2, 5]),
    "only forced": ([4, 3, 2, 1], 1, 0, 1, [3]),
}


@pytest.mark.parametrize(("scores", "topk", "init", "local", "expected"), ORDER.values(), ids=ORDER)
def test_order(scores, topk, init, local, expected, run_all, rng):
    """Blocks whose keys all score alike; the query sees the first key of the last block only."""
    count = len(scores)
    batch = make_batch([(1, (count - 1) * 64 + 1)], 64, rng)
    q, k = torch.zeros(1, 1, 16, dtype=BF16), torch.full((batch.num_blocks, 64, 16), POISON, dtype=BF16)
    q[..., 0] = 1
    for block, score in enumerate(scores):
        page = k[int(batch.block_table[0, block])]
        page[:] = 0
        page[:, 0] = score
    assert select(run_all, batch, q, k, topk, init, local)[0, 0].tolist() == expected


def test_says_what_it_does_not_take(emulator, rng):
    batch = make_batch([(1, 100)], 64, rng)
    q, k = make(batch, 1, 16, BF16, True, rng)
    ids = torch.zeros(1, 1, 4, dtype=torch.int32)
    for change, message in (
        ({"local_blocks": 0}, "local_blocks must be at least 1, got 0"),
        ({"topk": 17}, "topk must be at most 16, got 17"),
        ({"block_size": 8}, "block_size must be 64 or 128, got 8"),
    ):
        with pytest.raises(RefusedError, match=f"select_blocks: on Ascend {message}"):
            emulator.run("select_blocks", "SelectBlocksParams", values(ids, q, k, batch, 4, 0, 1) | change)
