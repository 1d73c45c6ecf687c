"""The training model's weights inside the transformers implementation."""

from __future__ import annotations

import pytest
import torch

from mmx.demo.train.export import checkpoint_views
from mmx.demo.train.model import Model


def transformers_model(model: Model) -> torch.nn.Module:
    """Return an fp32 transformers model with the weights of ``model``; skips without transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MiniMaxM3VLTextConfig(**model.s.config(bos=1, eos=2, pad=0))
    oracle = transformers.MiniMaxM3VLForCausalLM(config).eval()
    state = {}
    for name, tensor in checkpoint_views(model).items():
        if ".experts." in name:
            continue
        for ours, theirs in (
            (".block_sparse_moe.", ".mlp."),
            ("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
            ("index_q_proj", "indexer.q_proj"),
            ("index_k_proj", "indexer.k_proj"),
            ("index_q_norm", "indexer.q_norm"),
            ("index_k_norm", "indexer.k_norm"),
        ):
            name = name.replace(ours, theirs)
        state[name] = tensor
    for name in [name for name in state if name.endswith("gate_proj.weight")]:
        up = state.pop(name.replace("gate_proj", "up_proj"))
        state[name.replace("gate_proj", "gate_up_proj")] = torch.cat([state.pop(name), up])
    for i, layer in enumerate(model.layers):
        if layer.sparse:
            state[f"model.layers.{i}.mlp.experts.gate_up_proj"] = torch.cat([layer.w1, layer.w3], 1)
            state[f"model.layers.{i}.mlp.experts.down_proj"] = layer.w2
    oracle.load_state_dict(state)
    return oracle
