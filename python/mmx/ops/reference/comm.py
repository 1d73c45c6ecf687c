from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from mmx.ops.reference.norm import add_rms_norm, add_rms_norm_quantize


def exchange(
    rows: torch.Tensor, inboxes: Sequence[torch.Tensor], epochs: torch.Tensor, rank: int, timeout: float
) -> torch.Tensor:
    """``rows`` of all ranks in their order: [num_ranks, num_tokens, width], f32 or bf16 of an even width."""
    tokens, own = torch.arange(rows.shape[0], device=rows.device), inboxes[rank]
    epochs = epochs[: rows.shape[0]]
    epochs.copy_(torch.where(epochs == -1, 2, epochs + 1))
    number, slots = epochs.long().unsqueeze(1), epochs.long() & 1
    sent = rows.contiguous().view(torch.int32).long() & 0xFFFFFFFF | number << 32
    words = slice(sent.shape[1])
    for inbox in inboxes:
        inbox[slots, rank, tokens, words] = sent
    deadline = time.monotonic() + timeout
    while ((received := own[slots, :, tokens, words]) >> 32 != number.unsqueeze(2)).any():
        if time.monotonic() > deadline:
            raise RuntimeError(f"a rank sent nothing for {timeout:g} s")
    return received.int().transpose(0, 1).contiguous().view(rows.dtype)


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
) -> tuple[torch.Tensor, ...]:
    if epochs is not None:
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for part in exchange(x, inboxes, epochs, rank, timeout):
            total += part
        x = total.to(x.dtype)
    if quantize:
        return add_rms_norm_quantize(residual, x, weight, eps, gemma)
    return (add_rms_norm(residual, x, weight, eps, gemma),)
