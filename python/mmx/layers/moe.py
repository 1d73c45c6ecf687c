"""Mixture of experts."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers.batch import ForwardBatch
from mmx.layers.exchange import Exchange
from mmx.layers.linear import fp8_parameters, keeps_fp8, parameter
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
        shapes = (end - begin, 2 * config.inter, config.hidden), (end - begin, config.hidden, config.inter)
        self.gate_up_scale: nn.Parameter | None = None
        self.down_scale: nn.Parameter | None = None
        if keeps_fp8(config, config.inter):
            self.gate_up, self.gate_up_scale = fp8_parameters(*shapes[0])
            self.down, self.down_scale = fp8_parameters(*shapes[1])
        else:
            self.gate_up, self.down = (parameter(*shape, dtype=dtype) for shape in shapes)
        self.gate = gate

    def forward(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, shared: torch.Tensor | None
    ) -> torch.Tensor:
        """Weighted sum of those chosen experts that are here plus ``shared``: [num_tokens, hidden]."""
        plan = ops.moe_plan(topk_ids, self.first_expert, self.down.shape[0])
        return self.compute(x, topk_weights, *plan, shared)

    def route(self, x: torch.Tensor, router: Router, shared: torch.Tensor | None) -> torch.Tensor:
        """The same with the choice of ``router``, which is planned as it is made."""
        _, topk_weights, *plan = ops.moe_router_plan(
            x,
            router.weight,
            router.bias,
            router.topk,
            router.routed_scale,
            self.first_expert,
            self.down.shape[0],
        )
        return self.compute(x, topk_weights, *plan, shared)

    def compute(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        offsets: torch.Tensor,
        sorted_rows: torch.Tensor,
        row_positions: torch.Tensor,
        shared: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same with a plan."""
        if self.gate_up_scale is not None and self.down_scale is not None:
            codes, scale = ops.fp8_quantize(x)
            inner, inner_scale = ops.fp8_moe_gate_up(
                codes, scale, self.gate_up, self.gate_up_scale, offsets, sorted_rows, *self.gate
            )
            rows = ops.fp8_moe_down(inner, inner_scale, self.down, self.down_scale, offsets, x.dtype)
        else:
            inner = ops.moe_gate_up(x, self.gate_up, None, offsets, sorted_rows, *self.gate)
            rows = ops.moe_down(inner, self.down, None, offsets)
        return ops.moe_combine(rows, row_positions, topk_weights, shared)


class Moe(nn.Module):
    """Router, routed experts and, where the model has one, the shared expert."""

    def __init__(self, ranks: Ranks, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.spread = ranks.spread
        self.exchange = Exchange.of(ranks) if ranks.layout.all_to_all and ranks.spread.size > 1 else None
        self.gate = Router(config)
        self.experts = Experts(ranks, gate, dtype)
        self.shared: GatedMlp | None = None
        if config.shared_inter:
            self.shared = GatedMlp(config.hidden, config.shared_inter, gate, dtype)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[num_tokens, hidden], the part that this rank's experts and columns give. Where ranks hold
        different tokens, each computes its experts for the tokens of all of them, or of those that ask for
        them."""
        shared = None if self.shared is None else self.shared(x)
        if self.spread.size == 1:
            return self.experts.route(x, self.gate, shared)
        if self.exchange is not None:
            ids, weights = self.gate(x)
            output = self.exchange(x, ids, weights, partial(self.experts, shared=None))
        else:
            tokens = self.spread.gather_tokens(x, batch.token_counts)
            routed = self.experts.route(tokens, self.gate, None)
            output = self.spread.scatter_tokens(routed, batch.token_counts)
        return output if shared is None else output + shared
