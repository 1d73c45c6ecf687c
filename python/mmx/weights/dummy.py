"""Random weights for ``--load-format dummy``: a model without a checkpoint's tensors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

STD = 0.02


def fill_random(parameters: Mapping[str, torch.Tensor], seed: int, gemma: bool) -> None:
    """Matrices normal with deviation 0.02, biases 0, norms neutral (0 in Gemma form, else 1).

    A parameter's values depend on ``seed`` and its name only. They are drawn on the parameter's device.
    """
    for name, parameter in parameters.items():
        if name.endswith("norm.weight"):
            parameter.fill_(0.0 if gemma else 1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            generator = torch.Generator(parameter.device).manual_seed(seed ^ zlib.crc32(name.encode()))
            parameter.normal_(0.0, STD, generator=generator)
