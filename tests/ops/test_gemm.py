from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]


@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("gemm", "linear"))
def test_linear(dims, dtype, out_dtype, device, rng):
    x = torch.randn(dims["m"], dims["k"], generator=rng).to(dtype).to(device)
    weight = torch.randn(dims["n"], dims["k"], generator=rng).to(dtype).to(device)
    out = ops.linear(strided(x, pad=8), weight, out_dtype)
    same = reference.linear(x, weight, out_dtype)
    assert_close_to_truth(out, reference.linear(x.double(), weight.double()), same)
    assert_equal(ops.linear(x, weight, out_dtype), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_row_is_the_same_in_every_batch(dtype, device, rng):
    x = torch.randn(1100, 512, generator=rng).to(dtype).to(device)
    weight = torch.randn(64, 512, generator=rng).to(dtype).to(device)
    whole = ops.linear(x, weight)
    for count in (1, 2, 5, 8, 9, 16, 17, 33, 520, 1024):
        assert_equal(ops.linear(x[:count], weight), whole[:count], name=f"first {count} rows")


def test_linear_is_the_same_for_any_thread_count(rng):
    x, weight = torch.randn(7, 300, generator=rng), torch.randn(65, 300, generator=rng)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = ops.linear(x, weight)
        torch.set_num_threads(2)
        assert_equal(ops.linear(x, weight), single)
    finally:
        torch.set_num_threads(threads)


def test_linear_names_the_wrong_dimension(device):
    with pytest.raises(RuntimeError, match=r"linear: weight must be \[n=3, k=8\], got \[3, 7\]"):
        ops.linear(torch.zeros(2, 8, device=device), torch.zeros(3, 7, device=device))


def test_opcheck(device, rng):
    x, weight = torch.randn(4, 8, generator=rng).to(device), torch.ones(3, 8, device=device)
    torch.library.opcheck(torch.ops.mmx.linear.default, (torch.empty(4, 3, device=device), x, weight))
