"""Tiny random checkpoints with the tensor names, files and config forms of the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

M2: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "rope_theta": 5000000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "use_mtp": True,
    "num_mtp_modules": 3,
}
M3: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 32,
    "dense_intermediate_size": 96,
    "shared_intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "partial_rotary_factor": 0.5,
    "rope_theta": 5000000,
    "rms_norm_eps": 1e-6,
    "use_gemma_norm": True,
    "attention_output_gate": False,
    "use_qk_norm": True,
    "qk_norm_type": "per_head",
    "hidden_act": "swigluoai",
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "routed_scaling_factor": 2.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
SPARSE: dict[str, Any] = {
    "sparse_topk_blocks": 4,
    "sparse_block_size": 8,
    "sparse_local_block": 1,
    "sparse_init_block": 0,
    "sparse_score_type": "max",
}
VISION = {"vision_tower.vision_model.patch.weight": (4, 3), "multi_modal_projector.linear_1.weight": (4, 4)}
# Changes of the configs above; "sparse" changes the sparse part, "dense_layers" counts layers without experts
# and indexer, "multimodal" nests the text config and prefixes the names.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "wide_heads": {"head_dim": 32, "rotary_dim": 16, "num_attention_heads": 6},
    "experts": {"num_local_experts": 12, "num_experts_per_tok": 4, "num_key_value_heads": 4},
    "three_dense": {"dense_layers": 3, "sparse": {"sparse_topk_blocks": 3, "sparse_block_size": 16}},
    "all_blocks": {"sparse": {"sparse_topk_blocks": 64}},
    "local_two": {"sparse": {"sparse_topk_blocks": 6, "sparse_local_block": 2}},
    "multimodal": {"multimodal": True},
    "fp8": {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    | {"intermediate_size": 128, "fp8": True},
    "page128": {"sparse": {"sparse_topk_blocks": 2, "sparse_block_size": 128}},
}


def write_tiny_checkpoint(
    folder: Path,
    family: Literal["m2", "m3"] = "m3",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    config_form: Literal["raw", "normalised"] = "raw",
    variant: str | dict[str, Any] = "base",
    eos_token_id: int | None = None,
) -> Path:
    """Write config, generation config and two shards with an index; returns ``folder``.

    Norm gains and biases are random: their neutral values would hide errors. Router and its bias are f32,
    everything else ``dtype`` ("fp8": matrices in e4m3 with block scales). ``variant`` is a key of VARIANTS
    or a change like its values.
    """
    change = dict(VARIANTS[variant] if isinstance(variant, str) else variant)
    multimodal, fp8 = change.pop("multimodal", False), change.pop("fp8", False)
    sparse, dense_layers = SPARSE | change.pop("sparse", {}), change.pop("dense_layers", 1)
    config = (M2 if family == "m2" else M3) | change | {"torch_dtype": str(dtype).removeprefix("torch.")}
    if family == "m2":
        config["attn_type_list"] = [1] * config["num_hidden_layers"]
    else:
        flags = [int(i >= dense_layers) for i in range(config["num_hidden_layers"])]
        config["moe_layer_freq"] = flags
        config["sparse_attention_config"] = sparse | {
            "use_sparse_attention": True,
            "sparse_attention_freq": flags,
            "sparse_disable_index_value": flags,
            "sparse_index_dim": config["head_dim"],
            "sparse_num_index_heads": config["num_key_value_heads"],
        }
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "float8_e4m3fn",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        }
    tensors = random_tensors(config, family, seed)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, tensor in tensors.items():
        if fp8 and name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight")):
            stored[name], stored[name + "_scale_inv"] = to_fp8(tensor)
        else:
            wide = name.endswith(("block_sparse_moe.gate.weight", "e_score_correction_bias"))
            stored[name] = tensor if wide else tensor.to(dtype)
    if config_form == "normalised":
        config = normalised(config, family)
    if multimodal:
        stored = {f"language_model.{name}": tensor for name, tensor in stored.items()}
        stored |= {name: torch.zeros(shape) for name, shape in VISION.items()}
        config = wrapped(config)
    write_json(folder / "config.json", config)
    if eos_token_id is not None:
        write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": eos_token_id})
    write_shards(folder, stored)
    return folder


def random_tensors(config: dict[str, Any], family: str, seed: int) -> Tensors:
    """f32 tensors under their checkpoint names, scaled so that a tiny model is neither flat nor saturated."""
    generator = torch.Generator().manual_seed(seed)
    hidden, head_dim, inter = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    q_width, kv_width = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    tensors: Tensors = {}

    def matrix(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = torch.empty(shape).normal_(0, 0.15, generator=generator)

    def norm(name: str, width: int) -> None:
        low = 0.5 if family == "m2" else -0.5
        tensors[f"{name}.weight"] = torch.empty(width).uniform_(low, low + 1, generator=generator)

    def mlp(name: str, width: int) -> None:
        matrix(f"{name}.gate_proj", width, hidden)
        matrix(f"{name}.up_proj", width, hidden)
        matrix(f"{name}.down_proj", hidden, width)

    matrix("model.embed_tokens", config["vocab_size"], hidden)
    matrix("lm_head", config["vocab_size"], hidden)
    norm("model.norm", hidden)
    sparse = config.get("sparse_attention_config", {}).get("sparse_attention_freq")
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        attention, moe = f"{layer}.self_attn", f"{layer}.block_sparse_moe"
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        matrix(f"{attention}.q_proj", q_width, hidden)
        matrix(f"{attention}.k_proj", kv_width, hidden)
        matrix(f"{attention}.v_proj", kv_width, hidden)
        matrix(f"{attention}.o_proj", hidden, q_width)
        norm(f"{attention}.q_norm", q_width if family == "m2" else head_dim)
        norm(f"{attention}.k_norm", kv_width if family == "m2" else head_dim)
        if sparse and sparse[i]:
            matrix(f"{attention}.index_q_proj", kv_width, hidden)
            matrix(f"{attention}.index_k_proj", head_dim, hidden)
            norm(f"{attention}.index_q_norm", head_dim)
            norm(f"{attention}.index_k_norm", head_dim)
        if not config.get("moe_layer_freq", [1] * (i + 1))[i]:
            mlp(f"{layer}.mlp", config["dense_intermediate_size"])
            continue
        matrix(f"{moe}.gate", config["num_local_experts"], hidden)
        bias = torch.empty(config["num_local_experts"]).normal_(0, 0.3, generator=generator)
        tensors[f"{moe}.e_score_correction_bias"] = bias
        for expert in range(config["num_local_experts"]):
            matrix(f"{moe}.experts.{expert}.w1", inter, hidden)
            matrix(f"{moe}.experts.{expert}.w3", inter, hidden)
            matrix(f"{moe}.experts.{expert}.w2", hidden, inter)
        if family == "m3":
            mlp(f"{moe}.shared_experts", config["shared_intermediate_size"])
    return tensors


def to_fp8(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 values and the f32 scale of each 128 x 128 block; values times scale give the tensor back."""
    rows, cols = (-(-size // 128) for size in tensor.shape)
    scale = torch.ones(rows, cols)
    quantised = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(cols):
            block = (slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1)))
            scale[i, j] = tensor[block].abs().max() / 448
            quantised[block] = (tensor[block] / scale[i, j]).to(torch.float8_e4m3fn)
    return quantised, scale


def normalised(config: dict[str, Any], family: str) -> dict[str, Any]:
    """The form in which transformers writes the config."""
    config = dict(config)
    factor = config["rotary_dim"] / config["head_dim"]
    config["partial_rotary_factor"] = factor
    config["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": float(config.pop("rope_theta")),
        "partial_rotary_factor": factor,
    }
    config["dtype"] = config.pop("torch_dtype")
    config |= {"bos_token_id": 200034, "eos_token_id": 200020}
    if family == "m2":
        return config
    sparse = config.pop("sparse_attention_config")
    flags = config.pop("moe_layer_freq")
    config |= {
        "model_type": "minimax_m3_vl_text",
        "hidden_act": "silu",
        "mlp_layer_types": ["sparse" if flag else "dense" for flag in flags],
        "layer_types": ["minimax_m3_sparse" if flag else "full_attention" for flag in flags],
        "index_n_heads": sparse["sparse_num_index_heads"],
        "index_head_dim": sparse["sparse_index_dim"],
        "index_block_size": sparse["sparse_block_size"],
        "index_topk_blocks": sparse["sparse_topk_blocks"],
        "index_local_blocks": sparse["sparse_local_block"],
    }
    return config


def wrapped(text: dict[str, Any]) -> dict[str, Any]:
    """A multimodal config around the text part, whose ``model_type`` the published one lacks."""
    text = dict(text)
    text.pop("model_type", None)
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "torch_dtype": text.pop("torch_dtype", None) or text.pop("dtype"),
        "image_token_index": 250,
        "text_config": text,
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def write_shards(folder: Path, tensors: Tensors) -> None:
    """Two shards, numbered with a gap as in M2.7, and their index."""
    names = sorted(tensors)
    half = len(names) // 2
    weight_map = {}
    for file, part in (
        ("model-00001-of-00003.safetensors", names[:half]),
        ("model-00003-of-00003.safetensors", names[half:]),
    ):
        save_file(
            {name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
