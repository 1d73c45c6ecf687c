"""One module per model family."""

from __future__ import annotations

import torch

from mmx.distributed import Ranks
from mmx.layers import Attention, Linear, Moe
from mmx.model_config import ModelConfig
from mmx.models.causal_lm import CausalLM
from mmx.models.minimax_m2 import m2_layer
from mmx.models.minimax_m3 import m3_layer

_LAYERS = {"m2": m2_layer, "m3": m3_layer}


def build_model(
    config: ModelConfig, dtype: torch.dtype, ranks: Ranks | None = None, deterministic: bool = False
) -> CausalLM:
    """The model of ``config``, or this rank's share of it, on meta, with parameters of ``dtype`` (routers in
    fp32). ``deterministic``: no row's result depends on its batch, on a GPU in bf16 either."""
    ranks = ranks or Ranks.alone(config)
    layer = _LAYERS[config.family]
    model = CausalLM(ranks, [layer(ranks, i, dtype) for i in range(config.num_layers)], dtype)
    for module in model.modules():
        if isinstance(module, Linear | Moe):
            module.fixed_order = deterministic
        if isinstance(paged := getattr(module, "paged", None), Attention):
            paged.fixed_split = deterministic
    return model


__all__ = ["CausalLM", "build_model"]
