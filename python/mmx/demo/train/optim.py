"""Optimiser: orthogonalised momentum for hidden matrices, AdamW for embeddings, head, router and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmx.demo.train.model import Model

_ADAM_NAMES = ("norm", "embed", "head", "router")


def orthogonalize(g: Tensor) -> Tensor:
    """Replace each matrix of ``[n, rows, cols]`` by nearly its orthogonal factor (quintic Newton-Schulz)."""
    x = g.bfloat16() if g.is_cuda else g
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Both optimisers behind one ``step(scale)``; ``scale`` multiplies the peak learning rates."""

    MATRIX_LR, MATRIX_DECAY, MOMENTUM = 0.02, 0.03, 0.95
    ADAM_LR = 2e-3

    def __init__(self, model: Model) -> None:
        named = dict(model.named_parameters())
        self.adam_names = [n for n in named if any(part in n for part in _ADAM_NAMES)]
        fused = next(iter(named.values())).is_cuda
        self.adam = torch.optim.AdamW(
            [named[n] for n in self.adam_names],
            lr=self.ADAM_LR,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=fused,
        )
        # Matrices of one shape share their products; an expert tensor counts as that many matrices.
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for name, p in named.items():
            if name not in self.adam_names:
                self.groups.setdefault(tuple(p.shape[-2:]), []).append(p)
        self.momenta = {
            shape: torch.zeros(
                sum(p.numel() for p in ps) // (shape[0] * shape[1]), *shape, device=ps[0].device
            )
            for shape, ps in self.groups.items()
        }

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.ADAM_LR * scale
        self.adam.step()
        lr = self.MATRIX_LR * scale
        for shape, params in self.groups.items():
            # Index weights have no gradient on steps without an index loss; their momentum just fades.
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            grad = torch.cat([p.reshape(-1, *shape) for p in parts])
            momentum = self.momenta[shape].lerp_(grad, 1 - self.MOMENTUM)
            update = orthogonalize(grad.lerp(momentum, self.MOMENTUM))
            update = update.to(momentum.dtype) * max(1.0, shape[0] / shape[1]) ** 0.5
            count = 0
            for p in params:
                n = p.numel() // (shape[0] * shape[1])
                if p.grad is not None:
                    p.mul_(1 - lr * self.MATRIX_DECAY).sub_(update[count : count + n].view_as(p), alpha=lr)
                count += n

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        for params in self.groups.values():
            for p in params:
                p.grad = None

    def state(self) -> dict[str, Any]:
        """Return the state with bf16 moments, which halves a checkpoint at no visible cost."""
        moments = {
            name: {k: v.to(torch.bfloat16) if v.ndim else v for k, v in self.adam.state[p].items()}
            for name, p in zip(self.adam_names, self.adam.param_groups[0]["params"], strict=True)
            if p in self.adam.state
        }
        momenta = {"x".join(map(str, k)): v.to(torch.bfloat16) for k, v in self.momenta.items()}
        return {"adam": moments, "momenta": momenta}

    def load(self, state: dict[str, Any]) -> None:
        for name, p in zip(self.adam_names, self.adam.param_groups[0]["params"], strict=True):
            if name in state["adam"]:
                loaded = state["adam"][name]
                self.adam.state[p] = {k: v.to(p.device, torch.float32) for k, v in loaded.items()}
        for shape, momentum in self.momenta.items():
            momentum.copy_(state["momenta"]["x".join(map(str, shape))])
