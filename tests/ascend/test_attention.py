"""AscendC attention on the emulator: the shared cases against the shared references."""

from __future__ import annotations

import pytest
import torch

from ascend.emulated import RefusedError
from cases import load
from mmx.ops import reference
from ops.compare import POISON, assert_close_to_truth, assert_equal
from ops.paged import PagedBatch, draw_lens, make_batch
from ops.test_attention import make, random_blocks, widened

BF16 = torch.bfloat16
CPU = torch.device("cpu")


def taken(op: str) -> list:
    """Cases of the shared file that the cube's fractals allow."""
    return [
        c
        for c in load("attention", op)
        if c.values[0]["num_seqs"]
        and c.values[0]["head_dim"] % 16 == 0
        and c.values[0]["block_size"] % 16 == 0
    ]


def base_values(out, q, k, v, batch, scale, fixed_split=False):
    table, bounds, lens, max_q = batch.arguments(CPU)
    return {
        "out": out, "q": q, "k_cache": k, "v_cache": v, "block_table": table, "cu_seqlens_q": bounds,
        "seq_lens": lens, "num_tokens": q.shape[0], "num_seqs": len(batch.q_lens), "num_heads": q.shape[1],
        "num_kv_heads": k.shape[1], "head_dim": q.shape[2], "num_blocks": k.shape[0], "block_size": k.shape[2],
        "max_blocks_per_seq": table.shape[1], "max_seqlen_q": max_q, "out_token_stride": out.stride(0),
        "out_head_stride": out.stride(1), "q_token_stride": q.stride(0), "q_head_stride": q.stride(1),
        "k_cache_block_stride": k.stride(0), "v_cache_block_stride": v.stride(0),
        "block_table_stride": table.stride(0), "scale": scale, "dtype": BF16, "cache_dtype": k.dtype,
        "fixed_split": fixed_split,
    }  # fmt: skip


def check(run_all, batch: PagedBatch, q, k, v, ids=None, fixed_split=False):
    scale = q.shape[2] ** -0.5
    op = "paged_attention" if ids is None else "sparse_attention"
    params = "PagedAttentionParams" if ids is None else "SparseAttentionParams"

    def run():
        out = torch.full(q.shape, POISON, dtype=BF16)
        base = base_values(out, q, k, v, batch, scale, fixed_split)
        values = base if ids is None else {"base": base, "block_ids": ids, "topk": ids.shape[2]}
        return values, [out]

    (out,) = run_all(op, params, run)
    lists = () if ids is None else (ids,)
    args = (q, k, v, *lists, *batch.arguments(CPU), scale)
    reference_op = getattr(reference, op)
    assert_close_to_truth(out, reference_op(*widened(args)), reference_op(*args))
    return out


@pytest.mark.parametrize("dims", taken("paged_attention"))
def test_paged_attention(dims, run_all, rng):
    lens = draw_lens(dims["num_seqs"], dims["q_len"], dims["seq_len"], rng)
    batch = make_batch(lens, dims["block_size"], rng)
    check(run_all, batch, *make(batch, dims, BF16, CPU, rng))


@pytest.mark.parametrize("dims", taken("sparse_attention"))
def test_sparse_attention(dims, run_all, rng):
    lens = draw_lens(dims["num_seqs"], dims["q_len"], dims["seq_len"], rng)
    batch = make_batch(lens, dims["block_size"], rng)
    q, k, v = make(batch, dims, BF16, CPU, rng)
    check(run_all, batch, q, k, v, random_blocks(batch, dims["num_kv_heads"], dims["topk"], rng))
