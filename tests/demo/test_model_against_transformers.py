"""The training model computes what transformers computes from the same exported weights."""

from __future__ import annotations

from pathlib import Path

import torch

from demo.oracle import transformers_model
from mmx.demo.train.export import load_weights, save_weights
from mmx.demo.train.model import TRAINED, Model, Shape


def _random_model(shape: Shape) -> Model:
    torch.manual_seed(3)
    model = Model(shape)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(-0.5, 0.5)
            elif "router_bias" in name:
                tensor.normal_(0, 0.3)
            elif name not in ("cos", "sin"):
                tensor.normal_(0, 0.15)
    return model


def test_logits_beyond_topk_blocks() -> None:
    model = _random_model(Shape(vocab=128, hidden=64, num_layers=3, head_dim=16, rotary_dim=8, dense_inter=96,
                                inter=32, shared_inter=32, block_size=8, topk_blocks=4))  # fmt: skip
    tokens = torch.randint(0, 128, (2, 150))
    with torch.no_grad():
        hidden, _, _ = model(tokens, selector=TRAINED)
        ours = model.logits(hidden).view(2, 150, -1)
        theirs = transformers_model(model)(tokens).logits
        dense = model.logits(model(tokens)[0]).view(2, 150, -1)
    assert (ours - theirs).abs().max() < 1e-3
    assert (dense - theirs)[:, :32].abs().max() < 1e-3
    assert (dense - theirs)[:, 32:].abs().max() > 1e-2, (
        "the selection never bit, so the test compared nothing"
    )


def test_weights_round_trip(tmp_path: Path) -> None:
    shape = Shape(vocab=128, hidden=64, num_layers=2)
    model, again = _random_model(shape), Model(shape)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(again, tmp_path / "model.safetensors")
    assert torch.equal(again.layers[1].router, model.layers[1].router)
    assert torch.equal(again.layers[1].w2, model.layers[1].w2.bfloat16().float())
