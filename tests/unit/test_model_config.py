"""config.json in all its forms, and every value that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmx.errors import ConfigError
from mmx.model_config import load_eos_token_ids, load_model_config, parse_model_config

M2 = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "attn_type_list": [1] * 62,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 204800,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "float8_e4m3fn",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
    },
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
SPARSE = [0] * 3 + [1] * 57
M3_TEXT = {
    "architectures": ["MiniMaxM3SparseForCausalLM"],
    "attention_output_gate": False,
    "dense_intermediate_size": 12288,
    "head_dim": 128,
    "hidden_act": "swigluoai",
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "max_position_embeddings": 1048576,
    "moe_layer_freq": SPARSE,
    "n_shared_experts": 1,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 60,
    "num_key_value_heads": 4,
    "num_local_experts": 128,
    "num_mtp_modules": 7,
    "partial_rotary_factor": 0.5,
    "qk_norm_type": "per_head",
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.0,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 3072,
    "sparse_attention_config": {
        "use_sparse_attention": True,
        "sparse_attention_freq": SPARSE,
        "sparse_index_dim": 128,
        "sparse_num_index_heads": 4,
        "sparse_topk_blocks": 16,
        "sparse_block_size": 128,
        "sparse_local_block": 1,
        "sparse_init_block": 0,
        "sparse_score_type": "max",
        "sparse_disable_index_value": SPARSE,
    },
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_gemma_norm": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
M3 = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "model_type": "minimax_m3_vl",
    "text_config": M3_TEXT,
    "image_token_index": 250,
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1280},
}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_m2() -> None:
    config = parse_model_config(M2)
    assert config.family == "m2"
    assert (config.hidden, config.inter, config.num_experts, config.topk_experts) == (3072, 1536, 256, 8)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.rotary_dim) == (48, 8, 128, 64)
    assert config.moe_layers == (True,) * 62
    assert config.sparse_layers == (False,) * 62
    assert (config.block_size, config.shared_inter, config.routed_scale) == (128, 0, 1.0)
    assert config.fp8_blocks
    assert not config.gemma


def test_m3_nested_and_flat_agree() -> None:
    config = parse_model_config(M3)
    assert config.family == "m3"
    assert (config.dense_inter, config.shared_inter, config.inter) == (12288, 3072, 3072)
    assert config.moe_layers == config.sparse_layers == (False,) * 3 + (True,) * 57
    assert (config.topk_blocks, config.block_size, config.local_blocks, config.init_blocks) == (16, 128, 1, 0)
    assert (config.swiglu_alpha, config.swiglu_limit, config.routed_scale) == (1.702, 7.0, 2.0)
    assert config.gemma
    assert parse_model_config(M3_TEXT) == config
    assert (
        parse_model_config({**M3, "text_config": {**M3_TEXT, "model_type": "minimax_m3_vl_text"}}) == config
    )


def test_forms_that_transformers_writes() -> None:
    transformers = pytest.importorskip("transformers")
    m2 = without(M2, "quantization_config", "architectures", "model_type")
    written = transformers.MiniMaxM2Config(**m2, partial_rotary_factor=0.5).to_dict()
    assert parse_model_config(written) == parse_model_config(without(M2, "quantization_config"))
    m3 = transformers.MiniMaxM3VLConfig(text_config=without(M3_TEXT, "architectures"))
    assert parse_model_config(m3.to_dict()) == parse_model_config(M3)
    assert parse_model_config(m3.text_config.to_dict()) == parse_model_config(M3)


@pytest.mark.parametrize(
    ("removed", "added", "rotary_dim"),
    [
        ((), {}, 64),
        (("rotary_dim",), {}, 128),
        (("rotary_dim",), {"partial_rotary_factor": 0.25}, 32),
        (
            ("rotary_dim", "rope_theta"),
            {"rope_parameters": {"rope_theta": 1, "partial_rotary_factor": 0.5}},
            64,
        ),
        ((), {"partial_rotary_factor": 0.25}, 64),
    ],
)
def test_rotary_width(removed: tuple[str, ...], added: dict[str, Any], rotary_dim: int) -> None:
    assert parse_model_config(without(M2, *removed) | added).rotary_dim == rotary_dim


def test_use_sparse_attention_off_makes_all_layers_dense() -> None:
    sparse = {**M3_TEXT["sparse_attention_config"], "use_sparse_attention": False}
    assert parse_model_config({**M3_TEXT, "sparse_attention_config": sparse}).sparse_layers == (False,) * 60


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (M2, {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "architectures must name"),
        (M2, {"hidden_size": "big"}, "hidden_size must be an integer, got 'big'"),
        (M2, {"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        (M2, {"vocab_size": 2**63}, r"vocab_size must be below 2\^31, got 9223372036854775808"),
        (M2, {"architectures": [{}], "model_type": ["minimax_m2"]}, "architectures must name"),
        (M2, {"rope_theta": 0}, "rope_theta must be above 0, got 0"),
        (M2, {"rms_norm_eps": -1e-6}, "rms_norm_eps must be at least 0, got -1e-06"),
        (M2, {"hidden_size": True}, "hidden_size must be an integer, got True"),
        (M2, {"vocab_size": None}, "vocab_size must be an integer, got None"),
        (M2, {"rms_norm_eps": "x"}, "rms_norm_eps must be a number, got 'x'"),
        (M2, {"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        (M2, {"qk_norm_type": "per_head"}, "qk_norm_type must be 'per_layer', got 'per_head'"),
        (M2, {"use_qk_norm": False}, "use_qk_norm must be True, got False"),
        (M2, {"scoring_func": "softmax"}, "scoring_func must be 'sigmoid', got 'softmax'"),
        (M2, {"sliding_window": 4096}, "sliding_window must be None, got 4096"),
        (M2, {"rope_scaling": {"type": "yarn"}}, "rope_scaling must be None"),
        (M2, {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type must be 'default'"),
        (M2, {"shared_intermediate_size": 8}, "shared_intermediate_size must be 0, got 8"),
        (M2, {"tie_word_embeddings": True}, "tie_word_embeddings must be False, got True"),
        (M2, {"num_key_value_heads": 7}, "num_attention_heads must be a multiple of num_key_value_heads=7"),
        (M2, {"num_experts_per_tok": 999}, "num_experts_per_tok must be at most num_local_experts=256"),
        (M2, {"rotary_dim": 130}, "rotary_dim must be even and at most head_dim=128, got 130"),
        (M2, {"rotary_dim": 63}, "rotary_dim must be even"),
        (M2, {"torch_dtype": "float16"}, "dtype must be bfloat16 or float32, got 'float16'"),
        (M2, {"attn_type_list": [0] * 62}, "attn_type_list must be"),
        (M2, {"quantization_config": 3}, "quantization_config must be an object, got 3"),
        (M2, {"quantization_config": {"quant_method": "awq"}}, "quant_method must be 'fp8', got 'awq'"),
        (
            M2,
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            r"quantization_config.weight_block_size must be \[128, 128\]",
        ),
        (M3_TEXT, {"attention_output_gate": True}, "attention_output_gate must be False, got True"),
        (M3_TEXT, {"hidden_act": "silu"}, "hidden_act must be 'swigluoai', got 'silu'"),
        (M3_TEXT, {"use_gemma_norm": False}, "use_gemma_norm must be True, got False"),
        (M3_TEXT, {"n_shared_experts": 2}, "n_shared_experts must be 1, got 2"),
        (M3_TEXT, {"swiglu_beta": 0.5}, "swiglu_beta must be 1.0, got 0.5"),
        (M3_TEXT, {"moe_layer_freq": [1, 0]}, "moe_layer_freq must be 60 entries out of 0, 1"),
        (M3_TEXT, {"moe_layer_freq": [2] * 60}, "moe_layer_freq must be 60 entries out of 0, 1"),
        (M3, {"text_config": []}, r"text_config must be an object, got \[\]"),
    ],
)
def test_refused(base: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_config(base | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparse_score_type": "lse"}, "sparse_score_type must be 'max', got 'lse'"),
        ({"sparse_disable_index_value": [0] * 60}, "sparse_disable_index_value must be 60 flags, 1 on every"),
        ({"sparse_num_index_heads": 8}, "sparse_num_index_heads must be num_key_value_heads=4, got 8"),
        ({"sparse_index_dim": 64}, "sparse_index_dim must be head_dim=128, got 64"),
        (
            {"sparse_topk_blocks": 1, "sparse_init_block": 1},
            "sparse_topk_blocks must be at least the 2 forced",
        ),
        ({"sparse_local_block": 0}, "sparse_attention_config.sparse_local_block must be at least 1, got 0"),
        ({"sparse_block_size": 0}, "sparse_attention_config.sparse_block_size must be at least 1, got 0"),
        ({"sparse_attention_freq": "all"}, "sparse_attention_freq must be a list, got 'all'"),
    ],
)
def test_refused_sparse(change: dict[str, Any], message: str) -> None:
    sparse = {**M3_TEXT["sparse_attention_config"], **change}
    with pytest.raises(ConfigError, match=message):
        parse_model_config({**M3_TEXT, "sparse_attention_config": sparse})


@pytest.mark.parametrize("key", ["hidden_size", "rope_theta", "num_local_experts", "max_position_embeddings"])
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*, got nothing"):
        parse_model_config(without(M2, key))


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json must exist in"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json must be a JSON object"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ConfigError, match=r"config\.json must be a JSON object"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"config\.json must be a JSON object"):
        load_model_config(tmp_path)


def test_eos_token_ids(tmp_path: Path) -> None:
    assert load_eos_token_ids(tmp_path) == ()
    tokens = [{"id": 4, "content": "[e~["}, {"id": 5, "content": "]~b]"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert load_eos_token_ids(tmp_path) == (4,)
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"bos_token_id": 1}))
    assert load_eos_token_ids(tmp_path) == (4,)
    generation.write_text(json.dumps({"eos_token_id": 7}))
    assert load_eos_token_ids(tmp_path) == (7,)
    generation.write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert load_eos_token_ids(tmp_path) == (7, 8)
    generation.write_text(json.dumps({"eos_token_id": "end"}))
    with pytest.raises(ConfigError, match="eos_token_id must be an id or a list of ids, got 'end'"):
        load_eos_token_ids(tmp_path)
