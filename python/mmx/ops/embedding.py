"""Embedding lookup."""

from __future__ import annotations

import torch


def embedding(
    weight: torch.Tensor, ids: torch.Tensor, first_row: int = 0, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows of the table; zeros for ids outside ``[first_row, first_row + num_rows)``.

    Args:
        weight: [num_rows, hidden], f32 or bf16.
        ids: [num_tokens] int64.
        first_row: id of the table's first row (vocabulary-parallel shards).

    Returns:
        [num_tokens, hidden].
    """
    if out is None:
        out = torch.empty((ids.shape[0], weight.shape[1]), dtype=weight.dtype, device=weight.device)
    torch.ops.mmx.embedding(out, weight, ids, first_row)
    return out
