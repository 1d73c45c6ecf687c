"""Mixture of experts."""

from __future__ import annotations

import torch
from torch import nn

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers.batch import ForwardBatch
from mmx.layers.linear import parameter
from mmx.layers.mlp import Gate, GatedMlp
from mmx.model_config import ModelConfig


class Router(nn.Module):
    """Sigmoid scores in fp32 whatever the model's dtype: near ties decide which expert computes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = parameter(config.num_experts, config.hidden, dtype=torch.float32)
        self.bias = parameter(config.num_experts, dtype=torch.float32) if config.routing_bias else None
        self.topk = config.topk_experts
        self.routed_scale = config.routed_scale

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Expert ids [num_tokens, topk] and their weights."""
        return ops.moe_router(x, self.weight, self.bias, self.topk, self.routed_scale)


class Experts(nn.Module):
    """The matrices of this rank's experts, stacked."""

    def __init__(self, ranks: Ranks, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        config, (begin, end) = ranks.share.config, ranks.share.experts
        self.first_expert = begin
        self.gate_up = parameter(end - begin, 2 * config.inter, config.hidden, dtype=dtype)
        self.down = parameter(end - begin, config.hidden, config.inter, dtype=dtype)
        self.gate = gate

    def forward(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, shared: torch.Tensor | None
    ) -> torch.Tensor:
        """Weighted sum of those chosen experts that are here plus ``shared``: [num_tokens, hidden]."""
        offsets, sorted_rows, row_positions = ops.moe_plan(topk_ids, self.first_expert, self.down.shape[0])
        inner = ops.moe_gate_up(x, self.gate_up, None, offsets, sorted_rows, *self.gate)
        rows = ops.moe_down(inner, self.down, None, offsets)
        return ops.moe_combine(rows, row_positions, topk_weights, shared)


class Moe(nn.Module):
    """Router, routed experts and, where the model has one, the shared expert."""

    def __init__(self, ranks: Ranks, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.spread = ranks.spread
        self.gate = Router(config)
        self.experts = Experts(ranks, gate, dtype)
        self.shared: GatedMlp | None = None
        if config.shared_inter:
            self.shared = GatedMlp(config.hidden, config.shared_inter, gate, dtype)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[num_tokens, hidden], the part that this rank's experts and columns give. Where ranks hold
        different tokens, each computes its experts for the tokens of all of them."""
        shared = None if self.shared is None else self.shared(x)
        if self.spread.size == 1:
            return self.experts(x, *self.gate(x), shared)
        tokens = self.spread.gather_tokens(x, batch.token_counts)
        routed = self.experts(tokens, *self.gate(tokens), None)
        output = self.spread.scatter_tokens(routed, batch.token_counts)
        return output if shared is None else output + shared
