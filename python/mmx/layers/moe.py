"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmx import ops
from mmx.distributed import Ranks
from mmx.layers.batch import ForwardBatch
from mmx.layers.exchange import Exchange
from mmx.layers.linear import Codes, fp8_parameters, keeps_fp8, parameter
from mmx.layers.mlp import Gate, GatedMlp
from mmx.layers.norm import ExpertRows
from mmx.model_config import ModelConfig

# Tokens per device type from which torch's GEMM is faster for the shared expert.
SHARED_APART = {"cuda": 65}


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
    """The matrices of this rank's experts, stacked, and behind them those of the shared expert where it is as
    wide and all experts are here: ``num_shared``."""

    def __init__(self, ranks: Ranks, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        config, (begin, end) = ranks.share.config, ranks.share.experts
        self.first_expert, self.num_routed = begin, end - begin
        self.num_shared = int(ranks.share.merges_shared)
        count = self.num_routed + self.num_shared
        shapes = (count, 2 * config.inter, config.hidden), (count, config.hidden, config.inter)
        self.gate_up_scale: nn.Parameter | None = None
        self.down_scale: nn.Parameter | None = None
        if keeps_fp8(config, config.inter):
            self.gate_up, self.gate_up_scale = fp8_parameters(*shapes[0])
            self.down, self.down_scale = fp8_parameters(*shapes[1])
        else:
            self.gate_up, self.down = (parameter(*shape, dtype=dtype) for shape in shapes)
        self.gate = gate

    def forward(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """Weighted sum of those chosen experts that are here: [num_tokens, hidden]."""
        plan = ops.moe_plan(topk_ids, self.first_expert, self.num_routed)
        return self._rows(x, topk_weights, plan).sum()

    def route(
        self, x: torch.Tensor, router: Router, shared: torch.Tensor | None = None, codes: Codes | None = None
    ) -> ExpertRows:
        """The same sum, to be made, with the choice of ``router``, which is planned as it is made, plus
        ``shared`` or, without it, what the shared expert here gives. ``codes`` of ``x``, if there are any."""
        num_shared = self.num_shared if shared is None else 0
        choice = (router.weight, router.bias, router.topk + num_shared, router.routed_scale)
        here = (self.first_expert, self.num_routed + num_shared, num_shared)
        _, topk_weights, *plan = ops.moe_router_plan(x, *choice, *here)
        return self._rows(x, topk_weights, plan, shared, codes)

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        """The shared expert alone, through torch's GEMM: [num_tokens, hidden]."""
        return F.linear(ops.gated_act(F.linear(x, self.gate_up[-1]), *self.gate), self.down[-1])

    def _rows(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        plan: Sequence[torch.Tensor],
        shared: torch.Tensor | None = None,
        codes: Codes | None = None,
    ) -> ExpertRows:
        offsets, sorted_rows, row_positions = plan
        count = offsets.shape[0] - 1
        gate_up, down = self.gate_up[:count], self.down[:count]
        if self.gate_up_scale is not None and self.down_scale is not None:
            row_codes, row_scale = codes or ops.fp8_quantize(x)
            gate_up_scale = self.gate_up_scale[:count]
            inner, inner_scale = ops.fp8_moe_gate_up(
                row_codes, row_scale, gate_up, gate_up_scale, offsets, sorted_rows, *self.gate
            )
            rows = ops.fp8_moe_down(inner, inner_scale, down, self.down_scale[:count], offsets, x.dtype)
        else:
            inner = ops.moe_gate_up(x, gate_up, None, offsets, sorted_rows, *self.gate)
            rows = ops.moe_down(inner, down, None, offsets)
        return ExpertRows(rows, row_positions, topk_weights, shared)


class Moe(nn.Module):
    """Router, routed experts and, where the model has one, the shared expert.

    A shared expert that is stored with the others takes few tokens as one of them, many through torch's GEMM,
    unless ``fixed_order``.
    """

    fixed_order = False

    def __init__(self, ranks: Ranks, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        config = ranks.share.config
        self.spread = ranks.spread
        self.alone = ranks.tensor.size == 1
        self.exchange = Exchange.of(ranks) if ranks.layout.all_to_all and ranks.spread.size > 1 else None
        self.gate = Router(config)
        self.experts = Experts(ranks, gate, dtype)
        self.reads_codes = self.experts.gate_up_scale is not None and self.spread.size == 1
        self.shared: GatedMlp | None = None
        if config.shared_inter and not self.experts.num_shared:
            self.shared = GatedMlp(config.hidden, config.shared_inter, gate, dtype)

    def forward(
        self, x: torch.Tensor, batch: ForwardBatch, codes: Codes | None = None
    ) -> torch.Tensor | ExpertRows:
        """[num_tokens, hidden], the part that this rank's experts and columns give, to be summed if there is
        no other. Where ranks hold different tokens, each computes its experts for the tokens of all of them,
        or of those that ask for them. ``codes`` of ``x``, if there are any."""
        shared = None if self.shared is None else self.shared(x)
        if self.spread.size == 1:
            if self.experts.num_shared and self._takes_torch(x):
                shared = self.experts.shared(x)
            rows = self.experts.route(x, self.gate, shared, codes)
            return rows if self.alone else rows.sum()
        if self.exchange is not None:
            ids, weights = self.gate(x)
            output = self.exchange(x, ids, weights, self.experts)
        else:
            tokens = self.spread.gather_tokens(x, batch.token_counts)
            routed = self.experts.route(tokens, self.gate).sum()
            output = self.spread.scatter_tokens(routed, batch.token_counts)
        return output if shared is None else output + shared

    def _takes_torch(self, x: torch.Tensor) -> bool:
        many = x.shape[0] >= SHARED_APART.get(x.device.type, 1 << 62)
        return many and not self.fixed_order and self.experts.gate_up.dtype == x.dtype == torch.bfloat16
