from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]


def every_code(rows: int, cols: int, device: torch.device) -> torch.Tensor:
    """[rows, cols] e4m3 that runs through all 256 codes, NaN included."""
    codes = (torch.arange(rows * cols) * 37 % 256).to(torch.uint8)
    return codes.view(torch.float8_e4m3fn).view(rows, cols).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("quant", "fp8_block_dequant"))
def test_fp8_block_dequant(dims, dtype, device, rng):
    rows, cols = dims["rows"], dims["cols"]
    x = every_code(rows, cols, device)
    blocks = (-(-rows // 128), -(-cols // 128))
    scale = (torch.rand(blocks, generator=rng) * 1e-2).to(device)
    expected = reference.fp8_block_dequant(x, scale, dtype)
    assert_equal(ops.fp8_block_dequant(x, scale, dtype), expected)
    padded = torch.zeros(rows, cols + 5, dtype=torch.uint8, device=device)
    padded[:, :cols] = x.view(torch.uint8)
    rows_apart = padded.view(torch.float8_e4m3fn)[:, :cols]
    into = strided(torch.empty(rows, cols, dtype=dtype, device=device))
    ops.fp8_block_dequant(rows_apart, strided(scale), dtype, out=into)
    assert_equal(into, expected)


def test_fp8_block_dequant_of_a_slice_starts_its_own_blocks(device, rng):
    x, scale = every_code(256, 256, device), torch.rand(2, 2, generator=rng).to(device)
    whole = ops.fp8_block_dequant(x, scale, torch.float32)
    assert_equal(ops.fp8_block_dequant(x[128:], scale[1:], torch.float32), whole[128:])


def test_fp8_block_dequant_does_not_depend_on_threads(rng):
    x, scale = every_code(300, 257, torch.device("cpu")), torch.rand(3, 3, generator=rng)
    outs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        outs.append(ops.fp8_block_dequant(x, scale, torch.bfloat16))
    torch.set_num_threads(1)
    assert_equal(outs[1], outs[0])
    assert_equal(outs[2], outs[0])


def test_fp8_block_dequant_names_the_fault(device):
    x = every_code(130, 256, device)
    with pytest.raises(RuntimeError, match=r"fp8_block_dequant: scale must be \[2, 2\], got \[1, 2\]"):
        ops.fp8_block_dequant(x, torch.ones(1, 2, device=device), torch.float32)
    with pytest.raises(RuntimeError, match="fp8_block_dequant: x must be float8_e4m3fn, got float32"):
        ops.fp8_block_dequant(x.float(), torch.ones(2, 2, device=device), torch.float32)


def test_opcheck(device):
    x = every_code(2, 130, device)
    args = (torch.empty(2, 130, device=device), x, torch.ones(1, 2, device=device))
    # Why not all: the others compare the inputs by arithmetic that torch lacks for e4m3.
    utils = ("test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.mmx.fp8_block_dequant.default, args, test_utils=utils)
