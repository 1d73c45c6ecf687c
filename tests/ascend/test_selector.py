"""The AscendC block selector on the emulator: the shared cases against the shared reference."""

from __future__ import annotations

import pytest
import torch

from cases import load
from mmx.ops import reference
from ops.compare import assert_equal
from ops.paged import draw_lens, make_batch
from ops.test_selector import VALUES, assert_same_up_to_rounding, make

BF16 = torch.bfloat16
CPU = torch.device("cpu")
ABSURD = torch.iinfo(torch.int32).min


def values(ids, q, k, batch, topk, init_blocks, local_blocks):
    table, bounds, lens, max_q = batch.arguments(CPU)
    return {
        "block_ids": ids, "index_q": q, "index_k_cache": k, "block_table": table, "cu_seqlens_q": bounds,
        "seq_lens": lens, "num_tokens": q.shape[0], "num_seqs": len(batch.q_lens), "num_index_heads": q.shape[1],
        "index_dim": q.shape[2], "num_blocks": k.shape[0], "block_size": k.shape[1],
        "max_blocks_per_seq": table.shape[1], "topk": topk, "init_blocks": init_blocks,
        "local_blocks": local_blocks, "max_seqlen_q": max_q, "index_q_token_stride": q.stride(0),
        "index_q_head_stride": q.stride(1), "cache_block_stride": k.stride(0), "block_table_stride": table.stride(0),
        "dtype": BF16, "cache_dtype": k.dtype,
    }  # fmt: skip


def select(run_all, batch, q, k, *numbers):
    def run():
        ids = torch.full((*q.shape[:2], numbers[0]), ABSURD, dtype=torch.int32)
        return values(ids, q, k, batch, *numbers), [ids]

    (ids,) = run_all("select_blocks", "SelectBlocksParams", run)
    return ids


def taken() -> list:
    return [
        c for c in load("selector", "select_blocks")
        if c.values[0]["num_seqs"] and c.values[0]["index_dim"] % 16 == 0 and c.values[0]["block_size"] >= 64
    ]  # fmt: skip


@pytest.mark.parametrize("integers", VALUES)
@pytest.mark.parametrize("dims", taken())
def test_select_blocks(dims, integers, run_all, rng):
    lens = draw_lens(dims["num_seqs"], dims["q_len"], dims["seq_len"], rng)
    batch = make_batch(lens, dims["block_size"], rng)
    q, k = make(batch, dims["num_index_heads"], dims["index_dim"], BF16, integers, rng)
    numbers = (dims["topk"], dims["init_blocks"], dims["local_blocks"])
    out = select(run_all, batch, q, k, *numbers)
    expected = reference.select_blocks(q, k, *batch.arguments(CPU), *numbers)
    if integers:
        assert_equal(out, expected)
    else:
        assert_same_up_to_rounding(out, expected, batch, q, k)
