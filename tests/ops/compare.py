"""How op results are compared: against fp32 truth, within what the same precision loses anyway."""

from __future__ import annotations

import torch

# Absolute slack below which a difference is rounding noise of one result near zero: a few units in the last
# place of a value of order one.
ATOL = {torch.float32: 2e-6, torch.bfloat16: 8e-3}

POISON = float("nan")


def assert_close_to_truth(
    out: torch.Tensor, truth: torch.Tensor, same_precision: torch.Tensor, *, name: str = "out"
) -> None:
    """``max|out - truth| <= 2 max|same_precision - truth| + atol * max(1, max|truth|)``.

    ``truth`` is the reference in fp32 or wider on the same (already rounded) inputs, ``same_precision`` the
    reference at the op's own precision. Reports where the worst element is.
    """
    assert out.shape == truth.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(truth.shape)}"
    if out.numel() == 0:
        return
    truth = truth.double().cpu()
    error = (out.double().cpu() - truth).abs()
    assert not error.isnan().any(), f"{name}: NaN at {first(error.isnan())} of {tuple(out.shape)}"
    noise = (same_precision.double().cpu() - truth).abs().max()
    budget = 2 * noise + ATOL[out.dtype] * max(1.0, truth.abs().max().item())
    worst = error.argmax()
    where = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
    assert error.max() <= budget, (
        f"{name}{list(where)} = {out.cpu()[where].item():.8g}, truth {truth[where].item():.8g}, error "
        f"{error.max().item():.3g} > budget {budget.item():.3g}; {(error > budget).float().mean():.2%} bad"
    )


def assert_equal(out: torch.Tensor, expected: torch.Tensor, *, name: str = "out") -> None:
    """Bit for bit, for copies, indices and integers."""
    assert out.shape == expected.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(expected.shape)}"
    bad = out.cpu() != expected.cpu()
    bad &= ~(out.cpu().isnan() & expected.cpu().isnan()) if out.is_floating_point() else True
    assert not bad.any(), f"{name}: {int(bad.sum())} differ, first at {first(bad)}"


def first(mask: torch.Tensor) -> list[int]:
    """Coordinates of the first true element."""
    return [int(i) for i in mask.nonzero()[0]]


def strided(t: torch.Tensor, pad: int = 3) -> torch.Tensor:
    """A copy of ``t`` [rows, ...] whose rows lie apart, with NaN (or the type's minimum) between."""
    shape = (t.shape[0], t[0].numel() + pad) if t.shape[0] else (0, pad)
    fill = POISON if t.is_floating_point() else torch.iinfo(t.dtype).min
    buffer = torch.full(shape, fill, dtype=t.dtype, device=t.device)
    if not t.shape[0]:
        return t
    view = buffer[:, : t[0].numel()]
    view.copy_(t.reshape(t.shape[0], -1))
    inner = torch.empty(t.shape[1:], device="meta").stride()
    return buffer.as_strided(t.shape, (buffer.stride(0), *inner))
