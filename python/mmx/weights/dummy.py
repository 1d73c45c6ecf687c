"""Random weights for ``--load-format dummy``: a model without a checkpoint's tensors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

STD = 0.02
FP8_STD, FP8_MAX = 64.0, 448.0


def fill_random(parameters: Mapping[str, torch.Tensor], seed: int, gemma: bool) -> None:
    """Matrices normal with deviation 0.02, biases 0, norms neutral (0 in Gemma form, else 1).

    Matrices of e4m3 get codes of deviation 64 and scales that make it 0.02. A parameter's values depend on
    ``seed`` and its name only. They are drawn on the parameter's device.
    """
    for name, parameter in parameters.items():
        generator = torch.Generator(parameter.device).manual_seed(seed ^ zlib.crc32(name.encode()))
        if name.endswith("norm.weight"):
            parameter.fill_(0.0 if gemma else 1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        elif name.endswith("_scale"):
            parameter.fill_(STD / FP8_STD)
        elif parameter.dtype == torch.float8_e4m3fn:
            # Why in parts: the codes are drawn in a wider type.
            for part in parameter.unbind(0) if parameter.dim() > 2 else [parameter]:
                wide = torch.empty(part.shape, dtype=torch.bfloat16, device=part.device)
                part.copy_(wide.normal_(0.0, FP8_STD, generator=generator).clamp_(-FP8_MAX, FP8_MAX))
        else:
            parameter.normal_(0.0, STD, generator=generator)
