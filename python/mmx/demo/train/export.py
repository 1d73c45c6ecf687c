"""Write a trained model as a raw M3 checkpoint folder, and read one back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from mmx.demo.train.model import Model, Shape

# Checkpoint name inside ``model.layers.L.`` -> attribute of ``Layer``.
COMMON = {
    "input_layernorm.weight": "input_norm",
    "post_attention_layernorm.weight": "post_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "o",
    "self_attn.q_norm.weight": "q_norm",
    "self_attn.k_norm.weight": "k_norm",
}
DENSE_MLP = {"mlp.gate_proj.weight": "gate", "mlp.up_proj.weight": "up", "mlp.down_proj.weight": "down"}
SPARSE = {
    "self_attn.index_q_proj.weight": "index_q",
    "self_attn.index_k_proj.weight": "index_k",
    "self_attn.index_q_norm.weight": "index_q_norm",
    "self_attn.index_k_norm.weight": "index_k_norm",
    "block_sparse_moe.gate.weight": "router",
    "block_sparse_moe.e_score_correction_bias": "router_bias",
    "block_sparse_moe.shared_experts.gate_proj.weight": "gate",
    "block_sparse_moe.shared_experts.up_proj.weight": "up",
    "block_sparse_moe.shared_experts.down_proj.weight": "down",
}
TOP = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm", "lm_head.weight": "head"}


def checkpoint_views(model: Model) -> dict[str, Tensor]:
    """Map every raw checkpoint name to a view of the model's own tensor (experts unfused)."""
    views = {name: getattr(model, attribute) for name, attribute in TOP.items()}
    for i, layer in enumerate(model.decoder_layers()):
        names = COMMON | (SPARSE if layer.sparse else DENSE_MLP)
        views |= {f"model.layers.{i}.{name}": getattr(layer, attribute) for name, attribute in names.items()}
        if layer.sparse:
            for e in range(model.s.num_experts):
                for w in ("w1", "w2", "w3"):
                    name = f"model.layers.{i}.block_sparse_moe.experts.{e}.{w}.weight"
                    views[name] = getattr(layer, w)[e]
    return views


def save_weights(model: Model, path: Path) -> None:
    """Write the weights in bf16, the router and its bias in f32."""
    wide = ("block_sparse_moe.gate.weight", "e_score_correction_bias")
    tensors = {
        name: view.detach().cpu().to(torch.float32 if name.endswith(wide) else torch.bfloat16).contiguous()
        for name, view in checkpoint_views(model).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(model: Model, path: Path) -> None:
    """Fill the model from a file of ``save_weights``; a missing or unexpected tensor is an error."""
    tensors, views = load_file(path), checkpoint_views(model)
    if tensors.keys() != views.keys():
        raise ValueError(
            f"{path}: tensor names differ from the model's: {sorted(tensors.keys() ^ views.keys())}"
        )
    with torch.no_grad():
        for name, view in views.items():
            view.copy_(tensors[name])


def save_checkpoint(model: Model, tokenizer: Tokenizer, template: str, folder: Path) -> None:
    """Write weights, config, generation config, tokenizer and chat template into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors")
    vocab = tokenizer.get_vocab()
    bos, eos, pad = vocab["]~b]"], vocab["[e~["], vocab["]!p~["]
    generation = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "do_sample": True,
        "temperature": 0.3,
        "top_p": 0.95,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "]~b]",
        "eos_token": "[e~[",
        "pad_token": "]!p~[",
        "unk_token": "]!d~[",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.s.max_positions,
    }
    for name, data in (
        ("config.json", model.s.config(bos, eos, pad)),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def load_shape(folder: Path) -> Shape:
    """Check that the folder's config is the one this code trains, and return its sizes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape()
    expected = shape.config(config["bos_token_id"], config["eos_token_id"], config["pad_token_id"])
    if config != expected:
        differing = sorted(k for k in config.keys() | expected.keys() if config.get(k) != expected.get(k))
        raise ValueError(f"{folder}/config.json is not the demo's: {differing} differ from Shape()")
    return shape
