"""AscendC attention on the emulator: the shared cases against the shared references."""

from __future__ import annotations

import pytest
import torch

from ascend.emulated import RefusedError
from cases import load
from mmx.ops import reference
from ops.compare import POISON, assert_close_to_truth, assert_equal
from ops.paged import PagedBatch, draw_batch, make_batch
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
        "out": out,
        "q": q,
        "k_cache": k,
        "v_cache": v,
        "block_table": table,
        "cu_seqlens_q": bounds,
        "seq_lens": lens,
        "num_tokens": q.shape[0],
        "num_seqs": len(batch.q_lens),
        "num_heads": q.shape[1],
        "num_kv_heads": k.shape[1],
        "head_dim": q.shape[2],
        "num_blocks": k.shape[0],
        "block_size": k.shape[2],
        "max_blocks_per_seq": table.shape[1],
        "max_seqlen_q": max_q,
        "out_token_stride": out.stride(0),
        "out_head_stride": out.stride(1),
        "q_token_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "k_cache_block_stride": k.stride(0),
        "v_cache_block_stride": v.stride(0),
        "block_table_stride": table.stride(0),
        "scale": scale,
        "dtype": BF16,
        "cache_dtype": k.dtype,
        "fixed_split": fixed_split,
    }


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
    batch = draw_batch(dims, rng)
    check(run_all, batch, *make(batch, dims, BF16, CPU, rng))


@pytest.mark.parametrize("dims", taken("sparse_attention"))
def test_sparse_attention(dims, run_all, rng):
    batch = draw_batch(dims, rng)
    q, k, v = make(batch, dims, BF16, CPU, rng)
    check(run_all, batch, q, k, v, random_blocks(batch, dims["num_kv_heads"], dims["topk"], rng))


M2_HEADS = {"num_heads": 48, "num_kv_heads": 8, "head_dim": 128}
M3_HEADS = {"num_heads": 64, "num_kv_heads": 4, "head_dim": 128}


@pytest.mark.parametrize("heads", [M2_HEADS, M3_HEADS], ids=["m2", "m3"])
def test_heads_of_the_real_models(heads, run_all, rng):
    """Group 6 and 16; decode and prefill together; contexts that end anywhere in a page."""
    batch = make_batch([(1, 1), (3, 130), (1, 641), (9, 128)], 128, rng)
    q, k, v = make(batch, heads, BF16, CPU, rng)
    check(run_all, batch, q, k, v)
    check(run_all, batch, q, k, v, random_blocks(batch, heads["num_kv_heads"], 16, rng))


@pytest.mark.parametrize("context", [1, 127, 128, 129, 2048, 2500])
def test_one_token_split_over_cores(context, run_all, rng):
    """One decode of one KV head: its blocks go to many cores, some of which get none."""
    batch = make_batch([(1, context)], 128, rng)
    q, k, v = make(batch, {"num_heads": 16, "num_kv_heads": 1, "head_dim": 128}, BF16, CPU, rng)
    check(run_all, batch, q, k, v)
    check(run_all, batch, q, k, v, random_blocks(batch, 1, 16, rng))


def test_sparse_over_all_blocks_is_dense(run_all, rng):
    batch = make_batch([(5, 1900), (2, 300)], 128, rng)
    q, k, v = make(batch, M3_HEADS, BF16, CPU, rng)
    dense = check(run_all, batch, q, k, v)
    sparse = check(run_all, batch, q, k, v, random_blocks(batch, 4, 16, rng))
    assert_close_to_truth(sparse, dense.double(), dense)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_fixed_split_makes_rows_independent_of_their_batch(sparse, run_all, rng):
    batch = make_batch([(1, 90), (30, 1301), (20, 20)], 128, rng)
    q, k, v = make(batch, {"num_heads": 12, "num_kv_heads": 2, "head_dim": 128}, BF16, CPU, rng)
    ids = random_blocks(batch, 2, 4, rng) if sparse else None
    whole = check(run_all, batch, q, k, v, ids, fixed_split=True)
    rows = batch.rows(1)
    for first, size in ((0, 1), (1, 7), (8, 22)):
        part = slice(rows.start + first, rows.start + first + size)
        alone = batch.take(1, size, 1301 - 30 + first + size)
        chosen = None if ids is None else ids[part].contiguous()
        assert_equal(check(run_all, alone, q[part], k, v, chosen, fixed_split=True), whole[part])


def test_nan_key_reaches_only_the_rows_that_see_it(emulator, rng):
    batch = make_batch([(12, 24)], 16, rng)
    q, k, v = make(batch, {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}, BF16, CPU, rng)
    k[batch.block_table[0, 1].item(), 0, 1] = POISON  # position 17 of KV head 0, that is query row 5
    out = torch.zeros(q.shape, dtype=BF16)
    emulator.run("paged_attention", "PagedAttentionParams", base_values(out, q, k, v, batch, 0.1))
    assert out[5:, :4].isnan().all()
    assert not out[:5].isnan().any()
    assert not out[:, 4:].isnan().any()


def test_says_what_it_does_not_take(emulator, rng):
    batch = make_batch([(2, 9)], 8, rng)
    q, k, v = make(batch, {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}, BF16, CPU, rng)
    values = base_values(q.clone(), q, k, v, batch, 0.1)
    with pytest.raises(
        RefusedError, match="paged_attention: on Ascend block_size must be 16, 32, 64 or 128, got 8"
    ):
        emulator.run("paged_attention", "PagedAttentionParams", values)
    with pytest.raises(
        RefusedError, match="paged_attention: on Ascend head_dim must be a multiple of 16 up to 128"
    ):
        emulator.run("paged_attention", "PagedAttentionParams", values | {"block_size": 16, "head_dim": 36})
