"""Root mean square norm, alone and fused with the residual addition before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers.linear import Codes, parameter


class ExpertRows(NamedTuple):
    """A sum over experts that whoever adds it makes: what ``ops.moe_combine`` takes."""

    rows: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    shared: torch.Tensor | None

    def sum(self) -> torch.Tensor:
        """[num_tokens, hidden]."""
        return ops.moe_combine(*self)


class RmsNorm(nn.Module):
    """Norm over the last dimension, times ``weight`` or, in Gemma form, ``1 + weight``."""

    def __init__(self, width: int, eps: float, gemma: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(width, dtype=dtype)
        self.eps = eps
        self.gemma = gemma

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps, self.gemma, out=out)

    def add(self, residual: torch.Tensor, part: torch.Tensor | ExpertRows, ranks: Ranks) -> torch.Tensor:
        """``residual +=`` the sum of the ranks' ``part``, which is overwritten; the norm of that, for this
        rank's slice of the tokens with sequence-parallel norms."""
        if isinstance(part, ExpertRows):
            return ops.combine_add_rms_norm(residual, *part, self.weight, self.eps, self.gemma)[0]
        return ranks.add_norm(residual, part, (self.weight, self.eps, self.gemma))[0]

    def add_quantize(
        self, residual: torch.Tensor, part: torch.Tensor | ExpertRows, ranks: Ranks
    ) -> tuple[torch.Tensor, Codes]:
        """``add``, not with sequence-parallel norms, and the codes of what it gives."""
        norm = (self.weight, self.eps, self.gemma)
        if isinstance(part, ExpertRows):
            out, *codes = ops.combine_add_rms_norm(residual, *part, *norm, quantize=True)
        else:
            out, *codes = ranks.add_norm(residual, part, norm, quantize=True)
        return out, Codes(*codes)

    def by(self, x: torch.Tensor, mean_squares: torch.Tensor) -> None:
        """In place and not in Gemma form, with the mean square of each row given: x [num_tokens, width]."""
        factor = (mean_squares + self.eps).rsqrt_().unsqueeze(1)
        x.copy_((x * factor).mul_(self.weight))
