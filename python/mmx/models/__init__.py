"""One module per model family."""

from __future__ import annotations

import torch

from mmx.distributed import Ranks
from mmx.model_config import ModelConfig
from mmx.models.causal_lm import CausalLM
from mmx.models.minimax_m2 import m2_layer
from mmx.models.minimax_m3 import m3_layer

_LAYERS = {"m2": m2_layer, "m3": m3_layer}


def build_model(config: ModelConfig, dtype: torch.dtype, ranks: Ranks | None = None) -> CausalLM:
    """The model of ``config``, or this rank's share of it, on meta, with parameters of ``dtype`` (routers in
    fp32)."""
    ranks = ranks or Ranks.alone(config)
    layer = _LAYERS[config.family]
    return CausalLM(ranks, [layer(ranks, i, dtype) for i in range(config.num_layers)], dtype)


__all__ = ["CausalLM", "build_model"]
