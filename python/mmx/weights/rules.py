"""Which part of which parameter each checkpoint tensor fills, on one rank.

The table of names is written out for a whole model, so that "missing" and "unexpected" are set differences.
Projections that read the same input are merged by rows, experts are stacked.
"""

from __future__ import annotations

from typing import NamedTuple

from mmx.layout import Layout, Share, Span, length, share_of
from mmx.model_config import ModelConfig

SCALE_SUFFIX = "_scale_inv"
MXFP8_SUFFIX = "_scale"
_PREFIX = "language_model."
_SKIPPED = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.", "mtp.", "model.mtp.")


class Piece(NamedTuple):
    """Rows ``rows`` and columns ``cols`` (begin, end; None: all) of a checkpoint tensor of ``shape`` fill
    ``parameter[expert][first_row : first_row + number of rows]`` (``expert`` None: the parameter is not
    stacked). ``matrix``: it may be fp8 with a block scale."""

    parameter: str
    shape: tuple[int, ...]
    first_row: int = 0
    expert: int | None = None
    matrix: bool = False
    rows: Span | None = None
    cols: Span | None = None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of what is taken."""
        spans = (self.rows, self.cols)[: len(self.shape)]
        return tuple(
            size if span is None else length(span) for size, span in zip(self.shape, spans, strict=True)
        )


def text_name(name: str) -> str | None:
    """The name without the multimodal wrapper's prefix; None for tensors of parts that text does not use."""
    name = name.removeprefix(_PREFIX)
    return None if name.startswith(_SKIPPED) else name


def pieces(config: ModelConfig, share: Share | None = None) -> dict[str, Piece]:
    """Every tensor that the rank with ``share`` (None: the only rank) takes from a checkpoint, scales aside:
    name -> piece. Of experts that are elsewhere there is no piece."""
    share = share or share_of(config, Layout(), 0)
    vocab = (config.vocab_size, config.hidden)
    table = {
        "model.embed_tokens.weight": Piece("embed.weight", vocab, rows=share.vocab),
        "model.norm.weight": Piece("norm.weight", (config.hidden,)),
        "lm_head.weight": Piece("lm_head.weight", vocab, rows=share.vocab),
    }
    for layer in range(config.num_layers):
        source, target = f"model.layers.{layer}.", f"layers.{layer}."
        for ours, theirs in (("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            table[f"{source}{theirs}.weight"] = Piece(f"{target}{ours}.weight", (config.hidden,))
        sparse = config.sparse_layers[layer]
        _attention(table, source + "self_attn.", target + "attention.", config, share, sparse)
        if config.moe_layers[layer]:
            _moe(table, source + "block_sparse_moe.", target + "mlp.", config, share)
        else:
            widths = (config.hidden, config.dense_inter, share.dense_inter)
            _mlp(table, source + "mlp.", target + "mlp.", *widths)
    return table


def _scaled(span: Span, width: int) -> Span:
    return span[0] * width, span[1] * width


def _merge(table: dict[str, Piece], parameter: str, cols: int, parts: list[tuple[str, int, Span]]) -> None:
    """Parts (name, rows in the checkpoint, rows taken) below each other."""
    first_row = 0
    for name, num_rows, rows in parts:
        table[name] = Piece(parameter, (num_rows, cols), first_row, matrix=True, rows=rows)
        first_row += length(rows)


def _attention(
    table: dict[str, Piece], source: str, target: str, config: ModelConfig, share: Share, sparse: bool
) -> None:
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    q, kv = _scaled(share.heads, config.head_dim), _scaled(share.kv_heads, config.head_dim)
    # Invariant: all parts that rope rotates come first; the order is ``layers.attention``'s.
    parts = [(f"{source}q_proj.weight", q_width, q), (f"{source}k_proj.weight", kv_width, kv)]
    if sparse:
        index_q_width, index_dim = config.num_index_heads * config.index_dim, config.index_dim
        index_q = _scaled(share.kv_heads, index_dim)
        parts += [(f"{source}index_q_proj.weight", index_q_width, index_q)]
        parts += [(f"{source}index_k_proj.weight", index_dim, (0, index_dim))]
    _merge(table, f"{target}qkv.weight", config.hidden, [*parts, (f"{source}v_proj.weight", kv_width, kv)])
    output = Piece(f"{target}o.weight", (config.hidden, q_width), matrix=True, cols=q)
    table[f"{source}o_proj.weight"] = output
    if config.gemma:
        names = ("q_norm", "k_norm", *(("index_q_norm", "index_k_norm") if sparse else ()))
        norms = {name: Piece(f"{target}{name}.weight", (config.head_dim,)) for name in names}
    else:
        norms = {
            "q_norm": Piece(f"{target}q_norm.weight", (q_width,), rows=q),
            "k_norm": Piece(f"{target}k_norm.weight", (kv_width,), rows=kv),
        }
    table |= {f"{source}{name}.weight": piece for name, piece in norms.items()}


def _mlp(table: dict[str, Piece], source: str, target: str, hidden: int, inter: int, part: Span) -> None:
    parts = [(f"{source}gate_proj.weight", inter, part), (f"{source}up_proj.weight", inter, part)]
    _merge(table, f"{target}gate_up.weight", hidden, parts)
    table[f"{source}down_proj.weight"] = Piece(
        f"{target}down.weight", (hidden, inter), matrix=True, cols=part
    )


def _moe(table: dict[str, Piece], source: str, target: str, config: ModelConfig, share: Share) -> None:
    hidden, inter = config.hidden, config.inter
    table[f"{source}gate.weight"] = Piece(f"{target}gate.weight", (config.num_experts, hidden))
    if config.routing_bias:
        table[f"{source}e_score_correction_bias"] = Piece(f"{target}gate.bias", (config.num_experts,))
    experts = [(f"experts.{expert}", "w1", "w3", "w2") for expert in range(*share.experts)]
    if share.merges_shared:
        experts.append(("shared_experts", "gate_proj", "up_proj", "down_proj"))
    for place, (name, gate, up, down) in enumerate(experts):
        for matrix, first_row in ((gate, 0), (up, length(share.inter))):
            table[f"{source}{name}.{matrix}.weight"] = Piece(
                f"{target}experts.gate_up", (inter, hidden), first_row, place, True, rows=share.inter
            )
        table[f"{source}{name}.{down}.weight"] = Piece(
            f"{target}experts.down", (hidden, inter), 0, place, True, cols=share.inter
        )
    if config.shared_inter and not share.merges_shared:
        widths = (hidden, config.shared_inter, share.shared_inter)
        _mlp(table, source + "shared_experts.", target + "shared.", *widths)
