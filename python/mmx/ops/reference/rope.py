from __future__ import annotations

import torch


def rope(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[positions].unsqueeze(1).to(torch.promote_types(x.dtype, torch.float32)).split(half, -1)
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([part.to(x.dtype) for part in rotated] + [rest], -1)
