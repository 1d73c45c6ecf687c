"""Sums over the ranks of one host through memory that all of them have mapped."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmx.ops.fp8 import empty_codes


def all_reduce_add_rms_norm(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    gemma: bool,
    inboxes: Sequence[torch.Tensor] = (),
    epochs: torch.Tensor | None = None,
    rank: int = 0,
    timeout: float = 0.0,
    quantize: bool = False,
    *,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """The sum of the ranks' ``x``, in f32 in the order of the ranks and rounded to its dtype; then as
    ``add_rms_norm``. Every rank gets the same bits. All ranks make the same calls in the same order.

    Args:
        residual: [num_tokens, hidden], updated; the same on all ranks.
        x: [num_tokens, hidden], f32 or bf16, this rank's part; hidden a multiple of 8, at most 8192 and
            for more than two ranks at least 8 each, rows at multiples of 8 elements.
        weight, eps, gemma: as for ``rms_norm``.
        inboxes: of 2 to 8 ranks, as they are mapped here, none for the only rank: int64 [2, num_ranks,
            max_tokens, row_words], 0 at first, for at most ``max_tokens`` rows, whose 4-byte words
            ``row_words``, an even number, must hold.
        epochs: [max_tokens] int32, 0 at first, this rank's own.
        rank: place of this rank among them.
        timeout: seconds without a word from a rank until that is an error.
        out: like ``x``; may be ``x``.

    Returns:
        the norm and, if ``quantize``, its codes and scale as from ``add_rms_norm_quantize``.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    codes = empty_codes(out.shape, out.device) if quantize else ()
    torch.ops.mmx.all_reduce_add_rms_norm(
        out, *(codes or (None, None)), residual, x, weight, eps, gemma, list(inboxes), epochs, rank, timeout
    )
    return out, *codes
