"""The training model's weights inside the transformers implementation."""

from __future__ import annotations

import pytest
import torch

from mmx.demo.train.export import checkpoint_views
from mmx.demo.train.model import Model


def transformers_model(model: Model) -> torch.nn.Module:
    """Return an fp32 transformers model with the weights of ``model``; skips without transformers."""
    transformers = pytest.importorskip("transformers")
    from models.oracle import m3_state

    config = transformers.MiniMaxM3VLTextConfig(**model.s.config(bos=1, eos=2, pad=0))
    oracle: torch.nn.Module = transformers.MiniMaxM3VLForCausalLM(config).eval()
    oracle.load_state_dict(m3_state(checkpoint_views(model).items()))
    return oracle
