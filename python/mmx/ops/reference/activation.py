from __future__ import annotations

import torch


def gated_act(
    gate_up: torch.Tensor, activation: int, alpha: float = 1.702, limit: float = 7.0
) -> torch.Tensor:
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    if activation == 1:  # swiglu_oai
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (gate * torch.sigmoid(alpha * gate) * (up + 1)).to(gate_up.dtype)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)
