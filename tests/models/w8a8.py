"""Writes tiny w8a8-QuaRot checkpoints: a plain one rotated, quantised to int8 and described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from models.tiny import Tensors, write_json, write_shards

READERS = ("q_proj", "k_proj", "v_proj", "index_q_proj", "index_k_proj")
MLP_READERS = ("w1", "w3", "gate_proj", "up_proj", "block_sparse_moe.gate")
WRITERS = ("o_proj", "w2", "down_proj")
Kind = Literal["W8A8", "W8A8_DYNAMIC"]


def plain_tensors(folder: Path) -> Tensors:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}


def rotated(tensors: Tensors, gemma: bool, seed: int = 0) -> tuple[Tensors, torch.Tensor]:
    """The same model with its residual stream turned by a random orthogonal matrix: gains of the norms and
    the rotation are folded into the matrices around them. Also returns the rotation [hidden, hidden]."""
    hidden = tensors["model.norm.weight"].numel()
    noise = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = torch.linalg.qr(noise).Q
    out = dict(tensors)

    def gain(norm: str) -> torch.Tensor:
        return tensors[norm].double() + (1.0 if gemma else 0.0)

    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        layer = ".".join(name.split(".")[:3])
        if name == "model.embed_tokens.weight":
            out[name] = (tensor.double() @ turn).float()
        elif name == "lm_head.weight":
            out[name] = (tensor.double() * gain("model.norm.weight") @ turn).float()
        elif stem.endswith(READERS):
            out[name] = (tensor.double() * gain(f"{layer}.input_layernorm.weight") @ turn).float()
        elif stem.endswith(MLP_READERS):
            out[name] = (tensor.double() * gain(f"{layer}.post_attention_layernorm.weight") @ turn).float()
        elif stem.endswith(WRITERS):
            out[name] = (turn.T @ tensor.double()).float()
        elif stem.endswith(("layernorm", "model.norm")):
            out[name] = torch.full_like(tensor, 0.0 if gemma else 1.0)
    return out, turn.float()


def write_w8a8(plain: Path, folder: Path, static: tuple[str, ...] = ("o_proj",), gemma: bool = False) -> Path:
    """The checkpoint ``plain`` as w8a8-QuaRot; projections whose names end in one of ``static`` are W8A8, the
    others W8A8_DYNAMIC, embedding, router, head and norms FLOAT."""
    tensors, _ = rotated(plain_tensors(plain), gemma)
    stored: Tensors = {}
    description: dict[str, object] = {
        "model_quant_type": "W8A8_DYNAMIC",
        "version": "1.0.0",
        "group_size": 0,
        "is_rot_used": True,
        "optional": {"quarot": {"rotation_map": {"global_rotation": "optional/quarot.safetensors"}}},
    }
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if not stem.endswith(("_proj", ".w1", ".w2", ".w3")):
            stored[name], description[name] = tensor, "FLOAT"
            continue
        kind: Kind = "W8A8" if stem.endswith(static) else "W8A8_DYNAMIC"
        parts = quantised(tensor, kind)
        stored |= {f"{stem}.{part}": value for part, value in parts.items()}
        description |= dict.fromkeys((f"{stem}.{part}" for part in parts), kind)
    folder.mkdir(parents=True)
    config = json.loads((plain / "config.json").read_text())
    write_json(folder / "config.json", config)
    write_json(folder / "quant_model_description.json", description)
    write_shards(folder, stored)
    return folder


def quantised(matrix: torch.Tensor, kind: Kind) -> Tensors:
    """Codes of ``matrix`` [out, in] and what is stored beside them."""
    scale = matrix.abs().amax(1, keepdim=True) / 127
    codes = (matrix / scale).round().to(torch.int8)
    parts = {"weight": codes, "weight_scale": scale, "weight_offset": torch.zeros_like(scale)}
    if kind == "W8A8":
        input_scale, offset = torch.tensor([0.03]), torch.tensor([-7], dtype=torch.int8)
        parts |= {
            "input_scale": input_scale,
            "input_offset": offset,
            "quant_bias": -int(offset) * codes.sum(1, dtype=torch.int32),
            "deq_scale": (input_scale * scale).flatten(),
        }
    return parts
