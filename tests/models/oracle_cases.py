"""The checkpoints on which whole models are compared with transformers and, on a GPU, with the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.tiny import write_tiny_checkpoint


class Case(NamedTuple):
    """A checkpoint and a prompt longer than topk x block of its sparse layers."""

    family: str
    variant: str
    config_form: str
    dtype: torch.dtype
    num_prompt: int

    def write(self, folder: Path) -> Path:
        form: Any = self.config_form
        family: Any = self.family
        return write_tiny_checkpoint(folder, family, self.dtype, 11, config_form=form, variant=self.variant)

    def __str__(self) -> str:
        return f"{self.family}-{self.variant}-{self.config_form}-{str(self.dtype).removeprefix('torch.')}"


CASES = [
    Case("m2", "base", "raw", torch.float32, 150),
    Case("m2", "wide_heads", "normalised", torch.bfloat16, 150),
    Case("m2", "experts", "raw", torch.bfloat16, 131),
    Case("m3", "base", "raw", torch.float32, 150),
    Case("m3", "wide_heads", "normalised", torch.float32, 150),
    Case("m3", "experts", "raw", torch.bfloat16, 97),
    Case("m3", "three_dense", "normalised", torch.bfloat16, 150),
    Case("m3", "local_two", "raw", torch.float32, 150),
    Case("m3", "multimodal", "raw", torch.bfloat16, 64),
    Case("m3", "page128", "raw", torch.float32, 600),
]
