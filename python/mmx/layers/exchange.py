"""Tokens to the ranks that hold one of their experts and no others, and the experts' sums back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mmx.distributed import Group, Ranks
from mmx.layout import experts_of

# (tokens, topk_ids, topk_weights) -> the sum of those chosen experts that are here
Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Exchange(NamedTuple):
    """``experts`` are the (begin, end) of every rank of ``group``, whose ranks have different tokens."""

    group: Group
    experts: list[tuple[int, int]]

    @classmethod
    def of(cls, ranks: Ranks) -> Exchange:
        peers = ranks.layout.spread_group(ranks.rank)
        num_experts = ranks.share.config.num_experts
        return cls(ranks.spread, [experts_of(num_experts, ranks.layout, peer) for peer in peers])

    def __call__(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, compute: Compute
    ) -> torch.Tensor:
        """[num_tokens, hidden]; how many tokens go where is known on the device first, and read from there.

        Sums are taken in the order of the ranks, so that a step repeats its bits.
        """
        rows = [
            ((topk_ids >= begin) & (topk_ids < end)).any(1).nonzero()[:, 0] for begin, end in self.experts
        ]
        sent = [len(row) for row in rows]
        ones = [1] * self.group.size
        counts = torch.tensor(sent, dtype=torch.int64, device=x.device)
        received = self.group.all_to_all(counts, ones, ones).tolist()
        order = torch.cat(rows)
        tokens = self.group.all_to_all(x[order], sent, received)
        routes = torch.cat([topk_ids[order], topk_weights[order].view(torch.int32)], 1)
        ids, weights = self.group.all_to_all(routes, sent, received).chunk(2, 1)
        routed = compute(tokens, ids.contiguous(), weights.contiguous().view(torch.float32))
        back = self.group.all_to_all(routed, received, sent)
        out = torch.zeros_like(x)
        for row, part in zip(rows, back.split(sent), strict=True):
            out[row] += part
        return out
