"""AscendC fp8 expansion and int8 kernels on the emulator."""

from __future__ import annotations

import pytest
import torch

from cases import load
from mmx.ops import reference
from ops.compare import assert_equal, strided

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def expand(run_all, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows, cols = codes.shape
    x = strided(codes.view(torch.int8)).view(E4M3)

    def make():
        out = strided(torch.zeros(rows, cols, dtype=BF16))
        values = {
            "out": out,
            "x": x,
            "scale": scale,
            "rows": rows,
            "cols": cols,
            "out_stride": out.stride(0),
            "x_stride": x.stride(0),
            "scale_stride": scale.stride(0),
            "dtype": BF16,
        }
        return values, [out]

    (out,) = run_all("fp8_block_dequant", "Fp8BlockDequantParams", make)
    return out


def finite_codes(rng, *shape: int) -> torch.Tensor:
    codes = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    return codes.masked_fill((codes & 0x7F) == 0x7F, 0x08).view(E4M3)


@pytest.mark.parametrize("dims", [c for c in load("quant", "fp8_block_dequant") if c.values[0]["rows"]])
def test_fp8_block_dequant(dims, run_all, rng):
    rows, cols = dims["rows"], dims["cols"]
    codes = finite_codes(rng, rows, cols)
    scale = torch.rand(-(-rows // 128), -(-cols // 128), generator=rng) + 0.1
    assert_equal(expand(run_all, codes, scale), reference.fp8_block_dequant(codes, scale, BF16))


def test_every_fp8_code_is_exact(run_all):
    """All 254 finite codes under scales from 2^-20 to 2^10: subnormal codes as well."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes.masked_fill((codes & 0x7F) == 0x7F, 0).repeat(128 * 4, 1).view(E4M3)
    scale = torch.tensor([[2.0**-20, 1.0], [2.0**10, 0.3], [1e-3, 7.0], [448.0, 2.0**-8]])
    assert_equal(expand(run_all, codes, scale), reference.fp8_block_dequant(codes, scale, BF16))


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of DynamicQuantParams in the order of its operations."""
    wide = x.float()
    largest = wide.abs().amax(1)
    inverse = torch.tensor(127.0) / largest.clamp(min=1e-30)
    return (wide * inverse[:, None]).round().to(torch.int8), largest * torch.tensor(1 / 127)


SHAPES = [(1, 1), (3, 17), (33, 128), (70, 100), (5, 3072), (3, 12288)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_dynamic_quant(shape, run_all, rng):
    x = torch.randn(shape, generator=rng).to(BF16)
    x[::3] *= 1e-3
    x[-1] = 0 if shape[0] > 1 else x[-1]

    def make():
        out, scale = torch.full(shape, 99, dtype=torch.int8), torch.full((shape[0],), 7.0)
        source = strided(x)
        values = {
            "out": out,
            "scale": scale,
            "x": source,
            "rows": shape[0],
            "cols": shape[1],
            "x_stride": source.stride(0),
            "dtype": BF16,
        }
        return values, [out, scale]

    out, scale = run_all("dynamic_quant", "DynamicQuantParams", make)
    expected, expected_scale = quantise(x)
    assert_equal(out, expected)
    assert_equal(scale, expected_scale, name="scale")


PRODUCTS = [(1, 1, 1), (3, 33, 257), (17, 300, 512), (129, 257, 200), (2, 16, 12288)]


@pytest.mark.parametrize("shape", PRODUCTS, ids=lambda s: "x".join(map(str, s)))
def test_w8a8_linear(shape, run_all, rng):
    m, n, k = shape
    x, weight = (torch.randint(-127, 128, (rows, k), generator=rng, dtype=torch.int8) for rows in (m, n))
    x[0], weight[0] = 127, -127
    x_scale, weight_scale = torch.rand(m, generator=rng) * 0.1, torch.rand(n, generator=rng) * 0.1

    def make():
        out = strided(torch.zeros(m, n, dtype=BF16))
        values = {
            "out": out,
            "x": x,
            "weight": weight,
            "x_scale": x_scale,
            "weight_scale": weight_scale,
            "m": m,
            "n": n,
            "k": k,
            "out_stride": out.stride(0),
            "dtype": BF16,
        }
        return values, [out]

    (out,) = run_all("w8a8_linear", "W8A8LinearParams", make)
    product = (x.int() @ weight.int().T).float()
    assert_equal(out, (product * weight_scale * x_scale[:, None]).to(BF16))
