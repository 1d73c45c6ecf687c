"""Root mean square norm, alone and fused with the residual addition before it."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.distributed import Group
from mmx.layers.linear import parameter


class RmsNorm(nn.Module):
    """Norm over the last dimension, times ``weight`` or, in Gemma form, ``1 + weight``."""

    def __init__(self, width: int, eps: float, gemma: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(width, dtype=dtype)
        self.eps = eps
        self.gemma = gemma

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps, self.gemma, out=out)

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual += x``, then the norm of the sum, written over ``x``."""
        return ops.add_rms_norm(residual, x, self.weight, self.eps, self.gemma, out=x)


def norm_over_ranks(parts: list[tuple[torch.Tensor, RmsNorm]], group: Group) -> None:
    """Norms in place over rows of which each rank of ``group`` has an equally wide part: x [num_tokens, width
    of the part] and its plain norm, each with its own mean square. One all-reduce for all parts.

    Ranks may hold the same columns: each does so equally often, hence the mean of the means stays right.
    """
    # Why vector_norm: it reads any dtype and sums in f32, in one kernel.
    lengths = [torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x, _ in parts]
    squares = group.all_reduce(torch.stack(lengths).square_())
    for (x, norm), total in zip(parts, squares, strict=True):
        factor = (total / (group.size * x.shape[1])).add_(norm.eps).rsqrt_().unsqueeze(1)
        x.copy_((x * factor).mul_(norm.weight))
