"""Gated MLP: dense layers and the shared expert."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from mmx import ops
from mmx.layers.batch import ForwardBatch
from mmx.layers.linear import Linear


class Gate(NamedTuple):
    """A gated activation with its numbers, as ``ops.gated_act`` takes them."""

    activation: ops.Activation
    alpha: float = 0.0
    limit: float = 0.0


class GatedMlp(nn.Module):
    """``down(act(gate, up))`` with gate and up in one projection, gate rows first."""

    def __init__(self, hidden: int, inter: int, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = Linear(hidden, 2 * inter, dtype)
        self.down = Linear(inter, hidden, dtype)
        self.gate = gate

    def forward(self, x: torch.Tensor, batch: ForwardBatch | None = None) -> torch.Tensor:
        """[num_tokens, hidden], the part that this rank's columns give; ``batch`` is there because every MLP
        of a layer is called alike."""
        return self.down(ops.gated_act(self.gate_up(x), *self.gate))
