"""The AscendC norm, rope and page store in one pass, on the emulator: the shared cases and reference."""

from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal
from ops.test_qkv import EPS, MAX_POSITIONS, make

BF16 = torch.bfloat16
CPU = torch.device("cpu")


def values(args, dims, gemma):
    qkv, k, v, index_k, q_w, k_w, iq_w, ik_w, cos_sin, positions, slots = args[:11]
    tensors = {
        "qkv": qkv,
        "k_cache": k,
        "v_cache": v,
        "index_k_cache": index_k,
        "q_weight": q_w,
        "k_weight": k_w,
        "index_q_weight": iq_w,
        "index_k_weight": ik_w,
        "cos_sin": cos_sin,
        "positions": positions,
        "slot_mapping": slots,
    }
    numbers = {
        "num_tokens": qkv.shape[0],
        "num_heads": dims["num_heads"],
        "num_kv_heads": dims["num_kv_heads"],
        "num_index_heads": dims["num_index_heads"],
        "head_dim": dims["head_dim"],
        "rotary_dim": dims["rotary_dim"],
        "max_positions": MAX_POSITIONS,
        "num_blocks": k.shape[0],
        "block_size": k.shape[2],
        "qkv_stride": qkv.stride(0),
        "k_cache_block_stride": k.stride(0),
        "v_cache_block_stride": v.stride(0),
        "index_k_cache_block_stride": 0 if index_k is None else index_k.stride(0),
        "eps": EPS,
        "gemma": gemma,
        "norm_whole_projection": bool(dims["whole"]),
        "dtype": BF16,
        "weight_dtype": BF16,
        "cache_dtype": BF16,
        "index_cache_dtype": BF16,
    }
    return {name: t for name, t in tensors.items() if t is not None} | numbers


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize(
    "dims", [c for c in load("qkv", "norm_rope_store") if c.values[0]["head_dim"] in (64, 128)]
)
def test_norm_rope_store(dims, gemma, run_all, rng):
    case = make(dims, BF16, gemma, CPU, rng)
    truth, low = case.to(torch.float64), case.to(BF16)
    reference.norm_rope_store(*truth.args)
    reference.norm_rope_store(*low.args)
    before = case.to(BF16).args

    def run():
        args = case.to(BF16).args
        return values(args, dims, gemma), [a for a in args[:4] if a is not None]

    qkv, *pages = run_all("norm_rope_store", "NormRopeStoreParams", run)
    if dims["whole"]:
        # Given as a number of its own, the mean square of the heads that are here changes nothing.
        mean = ops.qk_mean_squares(before[0], dims["num_heads"], dims["num_kv_heads"], 1)

        def run_given():
            args = case.to(BF16).args
            return values(args, dims, gemma) | {"mean_squares": mean}, [a for a in args[:4] if a is not None]

        given, *_ = run_all("norm_rope_store", "NormRopeStoreParams", run_given)
        q = slice(0, dims["num_heads"])
        assert_close_to_truth(given[:, q], truth.args[0][:, q], low.args[0][:, q], name="by given means")
    heads, k_end = dims["num_heads"], dims["num_heads"] + dims["num_kv_heads"]
    for part in (slice(0, heads), slice(k_end, k_end + dims["num_index_heads"])):
        assert_close_to_truth(qkv[:, part], truth.args[0][:, part], low.args[0][:, part])
    assert_equal(qkv[:, case.v_begin :], before[0][:, case.v_begin :], name="v of the projection")
    for i, page in enumerate(pages, start=1):
        assert_close_to_truth(page, truth.args[i], low.args[i])
        untouched = truth.args[i] == before[i].double()
        assert_equal(page[untouched], before[i][untouched], name="outside the slots")
