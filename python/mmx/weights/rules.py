"""Which part of which parameter each checkpoint tensor fills.

The table is written out for a whole model, so that "missing" and "unexpected" are set differences.
Projections that read the same input are merged by rows, experts are stacked.
"""

from __future__ import annotations

from typing import NamedTuple

from mmx.model_config import ModelConfig

SCALE_SUFFIX = "_scale_inv"
_PREFIX = "language_model."
_SKIPPED = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.", "mtp.", "model.mtp.")


class Piece(NamedTuple):
    """A checkpoint tensor of ``shape`` fills ``parameter[expert][first_row : first_row + shape[0]]``
    (``expert`` None: the parameter is not stacked). ``matrix``: it may be fp8 with a block scale."""

    parameter: str
    shape: tuple[int, ...]
    first_row: int = 0
    expert: int | None = None
    matrix: bool = False


def text_name(name: str) -> str | None:
    """The name without the multimodal wrapper's prefix; None for tensors of parts that text does not use."""
    name = name.removeprefix(_PREFIX)
    return None if name.startswith(_SKIPPED) else name


def pieces(config: ModelConfig) -> dict[str, Piece]:
    """Every tensor the checkpoint must have (scales aside): name -> piece."""
    table = {
        "model.embed_tokens.weight": Piece("embed.weight", (config.vocab_size, config.hidden)),
        "model.norm.weight": Piece("norm.weight", (config.hidden,)),
        "lm_head.weight": Piece("lm_head.weight", (config.vocab_size, config.hidden)),
    }
    for layer in range(config.num_layers):
        source, target = f"model.layers.{layer}.", f"layers.{layer}."
        for ours, theirs in (("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            table[f"{source}{theirs}.weight"] = Piece(f"{target}{ours}.weight", (config.hidden,))
        _attention(table, source + "self_attn.", target + "attention.", config, config.sparse_layers[layer])
        if config.moe_layers[layer]:
            _moe(table, source + "block_sparse_moe.", target + "mlp.", config)
        else:
            _mlp(table, source + "mlp.", target + "mlp.", config.hidden, config.dense_inter)
    return table


def _merge(table: dict[str, Piece], parameter: str, cols: int, parts: list[tuple[str, int]]) -> None:
    first_row = 0
    for name, rows in parts:
        table[name] = Piece(parameter, (rows, cols), first_row, matrix=True)
        first_row += rows


def _attention(table: dict[str, Piece], source: str, target: str, config: ModelConfig, sparse: bool) -> None:
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # Invariant: all parts that rope rotates come first; the order is ``layers.attention``'s.
    parts = [(f"{source}q_proj.weight", q_width), (f"{source}k_proj.weight", kv_width)]
    if sparse:
        index_q_width = config.num_index_heads * config.index_dim
        parts += [(f"{source}index_q_proj.weight", index_q_width)]
        parts += [(f"{source}index_k_proj.weight", config.index_dim)]
    _merge(table, f"{target}qkv.weight", config.hidden, [*parts, (f"{source}v_proj.weight", kv_width)])
    table[f"{source}o_proj.weight"] = Piece(f"{target}o.weight", (config.hidden, q_width), matrix=True)
    per_head = config.gemma
    norms = {
        "q_norm": config.head_dim if per_head else q_width,
        "k_norm": config.head_dim if per_head else kv_width,
    }
    if sparse:
        norms |= {"index_q_norm": config.index_dim, "index_k_norm": config.index_dim}
    for name, width in norms.items():
        table[f"{source}{name}.weight"] = Piece(f"{target}{name}.weight", (width,))


def _mlp(table: dict[str, Piece], source: str, target: str, hidden: int, inter: int) -> None:
    parts = [(f"{source}gate_proj.weight", inter), (f"{source}up_proj.weight", inter)]
    _merge(table, f"{target}gate_up.weight", hidden, parts)
    table[f"{source}down_proj.weight"] = Piece(f"{target}down.weight", (hidden, inter), matrix=True)


def _moe(table: dict[str, Piece], source: str, target: str, config: ModelConfig) -> None:
    hidden, inter = config.hidden, config.inter
    table[f"{source}gate.weight"] = Piece(f"{target}gate.weight", (config.num_experts, hidden))
    if config.routing_bias:
        table[f"{source}e_score_correction_bias"] = Piece(f"{target}gate.bias", (config.num_experts,))
    for expert in range(config.num_experts):
        for name, first_row in (("w1", 0), ("w3", inter)):
            piece = Piece(f"{target}experts.gate_up", (inter, hidden), first_row, expert, True)
            table[f"{source}experts.{expert}.{name}.weight"] = piece
        piece = Piece(f"{target}experts.down", (hidden, inter), 0, expert, True)
        table[f"{source}experts.{expert}.w2.weight"] = piece
    if config.shared_inter:
        _mlp(table, source + "shared_experts.", target + "shared.", hidden, config.shared_inter)
