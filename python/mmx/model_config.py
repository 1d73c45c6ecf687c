"""What a checkpoint's ``config.json`` says, as one flat structure for both model families.

Read forms: MiniMax's raw files (M2 flat; M3 with the text part nested in ``text_config`` or flat) and the
form that transformers writes (``rope_parameters``, ``layer_types``, ``mlp_layer_types``, ``index_*``).
Everything the models do not implement is refused here, with the key and what was expected of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from mmx.errors import ConfigError

Family = Literal["m2", "m3"]
T = TypeVar("T")

M2_BLOCK_SIZE = 128
FP8_BLOCK = 128
W8A8_DESCRIPTION = "quant_model_description.json"
_FAMILIES: dict[str, Family] = {
    "MiniMaxM2ForCausalLM": "m2",
    "MiniMaxM3SparseForCausalLM": "m3",
    "MiniMaxM3SparseForConditionalGeneration": "m3",
    "MiniMaxM3VLForCausalLM": "m3",
    "minimax_m2": "m2",
    "minimax_m3_vl": "m3",
    "minimax_m3_vl_text": "m3",
}
# Names in ``sparse_attention_config`` and those that transformers writes.
_SPARSE_KEYS = {
    "heads": ("sparse_num_index_heads", "index_n_heads"),
    "dim": ("sparse_index_dim", "index_head_dim"),
    "block": ("sparse_block_size", "index_block_size"),
    "topk": ("sparse_topk_blocks", "index_topk_blocks"),
    "local": ("sparse_local_block", "index_local_blocks"),
    "init": ("sparse_init_block", "index_init_blocks"),
}


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and switches of a text model.

    ``moe_layers`` and ``sparse_layers`` have one entry per layer: MoE instead of a dense MLP, block-sparse
    attention with an indexer instead of dense attention. ``inter`` is one routed expert's width,
    ``shared_inter`` the shared expert's (0: none), ``dense_inter`` a dense MLP's. ``block_size`` is the
    tokens of a page, on M3 also of a sparse block; ``topk_blocks`` counts forced blocks too.
    ``fp8_blocks``: matrices are e4m3 with a scale per 128 x 128 block, multiplied out when they are loaded if
    ``dequantize``; ``mxfp8``: with a power of two per 32 columns of a row; ``w8a8``: a description beside
    the weights says which are int8.
    """

    family: Family
    dtype: str
    vocab_size: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    max_positions: int
    norm_eps: float
    num_experts: int
    topk_experts: int
    inter: int
    shared_inter: int = 0
    dense_inter: int = 0
    routed_scale: float = 1.0
    routing_bias: bool
    swiglu_alpha: float = 0.0
    swiglu_limit: float = 0.0
    moe_layers: tuple[bool, ...]
    sparse_layers: tuple[bool, ...]
    block_size: int
    topk_blocks: int = 0
    init_blocks: int = 0
    local_blocks: int = 0
    num_index_heads: int = 0
    fp8_blocks: bool
    mxfp8: bool = False
    w8a8: bool = False
    dequantize: bool = False

    @property
    def gemma(self) -> bool:
        """Norms multiply by ``1 + weight``; q and k are then normed per head, else per projection."""
        return self.family == "m3"

    @property
    def index_dim(self) -> int:
        """Width of an index head; the config guard makes it the attention's."""
        return self.head_dim


def load_model_config(folder: Path, dequantize: bool = False) -> ModelConfig:
    """Read ``folder/config.json``; ConfigError in one sentence where it can not be served."""
    config = parse_model_config(_read_object(folder / "config.json"))
    w8a8 = (folder / W8A8_DESCRIPTION).is_file()
    if w8a8 and (config.fp8_blocks or config.mxfp8):
        raise ConfigError(f"config.json must not have quantization_config beside {W8A8_DESCRIPTION}")
    return msgspec.structs.replace(config, w8a8=w8a8, dequantize=dequantize)


def load_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end a sequence: ``eos_token_id`` of ``generation_config.json``, else the token ``[e~[`` of
    ``tokenizer.json``; empty if neither exists. ``config.json`` is not asked, its ids are class defaults."""
    generation = folder / "generation_config.json"
    eos = _read_object(generation).get("eos_token_id") if generation.is_file() else None
    if eos is not None:
        ids = eos if isinstance(eos, list) else [eos]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ConfigError(f"{generation.name}: eos_token_id must be an id or a list of ids, got {eos!r}")
        return tuple(ids)
    tokenizer = folder / "tokenizer.json"
    tokens = _read_object(tokenizer).get("added_tokens", []) if tokenizer.is_file() else []
    return tuple(token["id"] for token in tokens if token["content"] == "[e~[")


def parse_model_config(raw: dict[str, Any]) -> ModelConfig:
    """The structure for the decoded ``config.json``."""
    names = [*_Section(raw).get("architectures", list, []), raw.get("model_type")]
    text_raw = raw.get("text_config", raw)
    if not isinstance(text_raw, dict):
        raise ConfigError(f"config.json: text_config must be an object, got {text_raw!r}")
    if text_raw is not raw:
        names += [*_Section(text_raw).get("architectures", list, []), text_raw.get("model_type")]
    families = {_FAMILIES[name] for name in names if isinstance(name, str) and name in _FAMILIES}
    if len(families) != 1:
        raise ConfigError(f"config.json: architectures must name a MiniMax M2 or M3 text model, got {names}")
    # Why the copies: M3 keeps dtype, quantisation and sometimes tie_word_embeddings outside text_config.
    shared = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
    text = _Section({key: raw[key] for key in shared if key in raw} | text_raw)
    return _m2(text) if families == {"m2"} else _m3(text)


def _m2(text: _Section) -> ModelConfig:
    num_layers = text.count("num_hidden_layers")
    text.only(hidden_act="silu", qk_norm_type="per_layer", shared_intermediate_size=0)
    text.only(attn_type_list=[1] * num_layers)
    return ModelConfig(
        family="m2",
        **_common(text),
        moe_layers=(True,) * num_layers,
        sparse_layers=(False,) * num_layers,
        block_size=M2_BLOCK_SIZE,
    )


def _m3(text: _Section) -> ModelConfig:
    # Why: transformers writes hidden_act "silu" although it computes SwiGLU-OAI.
    if "mlp_layer_types" not in text.raw:
        text.only(hidden_act="swigluoai")
    text.only(qk_norm_type="per_head", use_gemma_norm=True, attention_output_gate=False)
    text.only(swiglu_beta=1.0, n_shared_experts=1)
    common = _common(text)
    num_layers = common["num_layers"]
    if "mlp_layer_types" in text.raw:
        moe = text.flags("mlp_layer_types", num_layers, {"dense": False, "sparse": True})
    else:
        moe = text.flags("moe_layer_freq", num_layers, {0: False, 1: True})
    return ModelConfig(
        family="m3",
        **common,
        shared_inter=text.count("shared_intermediate_size"),
        dense_inter=text.count("dense_intermediate_size"),
        routed_scale=text.get("routed_scaling_factor", float),
        swiglu_alpha=text.get("swiglu_alpha", float),
        swiglu_limit=text.get("swiglu_limit", float),
        moe_layers=moe,
        **_sparse(text, num_layers, common["num_kv_heads"], common["head_dim"]),
    )


def _sparse(text: _Section, num_layers: int, num_kv_heads: int, head_dim: int) -> dict[str, Any]:
    """Fields of block-sparse attention, from ``sparse_attention_config`` or transformers' ``index_*``."""
    nested = "sparse_attention_config" in text.raw
    part = text.section("sparse_attention_config") if nested else text
    key = {meaning: raw if nested else written for meaning, (raw, written) in _SPARSE_KEYS.items()}
    if nested:
        part.only(sparse_score_type="max")
        layers = part.flags("sparse_attention_freq", num_layers, {0: False, 1: True})
        if not part.get("use_sparse_attention", bool, True):
            layers = (False,) * num_layers
        disabled = part.get("sparse_disable_index_value", list, [int(on) for on in layers])
        if len(disabled) != num_layers or any(on > off for on, off in zip(layers, disabled, strict=True)):
            raise part.error("sparse_disable_index_value", f"{num_layers} flags, 1 on every sparse layer")
    else:
        layers = part.flags("layer_types", num_layers, {"full_attention": False, "minimax_m3_sparse": True})
    if part.count(key["heads"]) != num_kv_heads:
        raise part.error(key["heads"], f"num_key_value_heads={num_kv_heads}")
    if part.count(key["dim"]) != head_dim:
        raise part.error(key["dim"], f"head_dim={head_dim}")
    topk_blocks, local_blocks = part.count(key["topk"]), part.count(key["local"])
    init_blocks = part.count(key["init"], 0, least=0)
    if init_blocks + local_blocks > topk_blocks:
        raise part.error(key["topk"], f"at least the {init_blocks + local_blocks} forced blocks")
    return {
        "sparse_layers": layers,
        "block_size": part.count(key["block"]),
        "topk_blocks": topk_blocks,
        "init_blocks": init_blocks,
        "local_blocks": local_blocks,
        "num_index_heads": num_kv_heads,
    }


def _common(text: _Section) -> dict[str, Any]:
    text.only(use_qk_norm=True, scoring_func="sigmoid", tie_word_embeddings=False)
    text.only(sliding_window=None, rope_scaling=None)
    rope = text.section("rope_parameters") if "rope_parameters" in text.raw else text
    if rope is not text:
        rope.only(rope_type="default")
    num_heads, num_kv_heads = text.count("num_attention_heads"), text.count("num_key_value_heads")
    if num_heads % num_kv_heads:
        raise text.error("num_attention_heads", f"a multiple of num_key_value_heads={num_kv_heads}")
    num_experts, topk_experts = text.count("num_local_experts"), text.count("num_experts_per_tok")
    if topk_experts > num_experts:
        raise text.error("num_experts_per_tok", f"at most num_local_experts={num_experts}")
    head_dim = text.count("head_dim")
    factor = rope.get("partial_rotary_factor", float, text.get("partial_rotary_factor", float, 1.0))
    rotary_dim = text.count("rotary_dim", int(head_dim * factor))
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise text.error("rotary_dim", f"even and at most head_dim={head_dim}")
    rope_theta, norm_eps = rope.get("rope_theta", float), text.get("rms_norm_eps", float)
    if rope_theta <= 0:
        raise rope.error("rope_theta", "above 0")
    if norm_eps < 0:
        raise text.error("rms_norm_eps", "at least 0")
    dtype = str(text.raw.get("dtype") or text.raw.get("torch_dtype") or "bfloat16")
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"config.json: dtype must be bfloat16 or float32, got {dtype!r}")
    return {
        "dtype": dtype,
        "vocab_size": text.count("vocab_size"),
        "hidden": text.count("hidden_size"),
        "num_layers": text.count("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "rotary_dim": rotary_dim,
        "rope_theta": rope_theta,
        "max_positions": text.count("max_position_embeddings"),
        "norm_eps": norm_eps,
        "num_experts": num_experts,
        "topk_experts": topk_experts,
        "inter": text.count("intermediate_size"),
        "routing_bias": text.get("use_routing_bias", bool, True),
        "fp8_blocks": _quant_method(text) == "fp8",
        "mxfp8": _quant_method(text) == "mxfp8",
    }


def _quant_method(text: _Section) -> str | None:
    if text.raw.get("quantization_config") is None:
        return None
    part = text.section("quantization_config")
    if part.raw.get("quant_method") == "mxfp8":
        return "mxfp8"
    part.only(quant_method="fp8", fmt="float8_e4m3fn", weight_block_size=[FP8_BLOCK, FP8_BLOCK])
    return "fp8"


class _Section:
    """An object of ``config.json`` whose values are read with their type checked."""

    def __init__(self, raw: dict[str, Any], path: str = "") -> None:
        self.raw = raw
        self.path = path

    def error(self, key: str, expected: str) -> ConfigError:
        found = repr(self.raw[key]) if key in self.raw else "nothing"
        return ConfigError(f"config.json: {self.path}{key} must be {expected}, got {found}")

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.raw.get(key)
        if value is None:
            value = default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            names = {int: "an integer", float: "a number", bool: "true or false", list: "a list"}
            raise self.error(key, names[kind])
        return value

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(key, int, default)
        if not least <= value < 2**31:
            raise self.error(key, f"at least {least}" if value < least else "below 2^31")
        return value

    def only(self, **values: object) -> None:
        """Each key, where present, must have the one value that is implemented."""
        for key, value in values.items():
            if key in self.raw and self.raw[key] != value:
                raise self.error(key, repr(value))

    def flags(self, key: str, num_layers: int, meaning: dict[Any, bool]) -> tuple[bool, ...]:
        values = self.get(key, list)
        if len(values) != num_layers or any(value not in list(meaning) for value in values):
            raise self.error(key, f"{num_layers} entries out of {', '.join(map(repr, meaning))}")
        return tuple(meaning[value] for value in values)

    def section(self, key: str) -> _Section:
        value = self.raw[key]
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return _Section(value, f"{self.path}{key}.")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ConfigError(f"{path.name} must exist in {path.parent}") from None
    except ValueError as error:
        raise ConfigError(f"{path} must be a JSON object: {error}") from None
