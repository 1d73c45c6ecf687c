"""Products of e4m3 rows as Hopper's tensor cores sum them: the reference of what the device rounds.

An instruction takes 32 products and the sum so far, aligns them with the largest, cuts them off (does not
round) below ``SUM_BITS`` bits of its fraction, adds, and cuts the sum off at ``SUM_BITS`` bits of its own.
Four instructions make a block of 128, which is scaled and added in fp32. None of this is documented: it was
found by comparing with a library's product, which it gives bit for bit (``test_tensor_core.py``).
"""

from __future__ import annotations

from unittest.mock import patch

import torch

from mmx.ops.reference import fp8

SUM_BITS = 13
_STEP, _BLOCK, _LEAST = 32, 128, -500


def block_sums(x: torch.Tensor, weight: torch.Tensor, bits: int = SUM_BITS) -> torch.Tensor:
    """Sums over k, one instruction after the other: x [m, k], weight [n, k], both e4m3 -> [m, n] f64."""
    sums = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64, device=x.device)
    for begin in range(0, x.shape[1], _STEP):
        rows, cols = x[:, begin : begin + _STEP].double(), weight[:, begin : begin + _STEP].double()
        terms = torch.cat([rows[:, None] * cols[None], sums[..., None]], -1)
        # Why of the operands: exponents are added before fractions are multiplied, which may reach 4.
        exponents = torch.cat(
            [_exponent(rows)[:, None] + _exponent(cols)[None], _exponent(sums)[..., None]], -1
        )
        sums = _cut(_cut(terms, exponents.amax(-1, keepdim=True), bits).sum(-1), None, bits)
    return sums


def _exponent(x: torch.Tensor) -> torch.Tensor:
    """floor(log2(|x|)); far below all others for 0."""
    return torch.where(x == 0, _LEAST, torch.frexp(x).exponent - 1)


def _cut(x: torch.Tensor, exponent: torch.Tensor | None, bits: int) -> torch.Tensor:
    """``x`` without what lies ``bits`` bits below ``exponent``; None: below its own."""
    exponent = _exponent(x) if exponent is None else exponent
    unit = torch.ldexp(torch.ones_like(x), exponent.clamp(min=_LEAST) - bits)
    return (x / unit).trunc() * unit


def product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    """[m, n] f32 of e4m3 rows and weights with their scales."""
    out = torch.zeros(x.shape[0], weight.shape[0], device=x.device)
    for step, begin in enumerate(range(0, x.shape[1], _BLOCK)):
        part = block_sums(x[:, begin : begin + _BLOCK], weight[:, begin : begin + _BLOCK])
        factor = x_scale[:, step, None] * weight_scale[:, step].repeat_interleave(128)[: len(weight)]
        out = (part * factor.double() + out.double()).float()
    return out


def fp8_linear(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    return product(x, x_scale, weight, weight_scale).to(dtype)


# The references, whose products are all made by their ``fp8_linear``.
fp8_moe_gate_up, fp8_moe_down = (
    patch.object(fp8, "fp8_linear", fp8_linear)(op) for op in (fp8.fp8_moe_gate_up, fp8.fp8_moe_down)
)
