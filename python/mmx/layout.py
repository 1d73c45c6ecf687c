"""Who holds what: from sizes and a rank to groups of ranks and ranges of heads, experts and vocabulary.

Pure functions. Rank ``r`` is at place (data, context, tensor) = (d, p, t) with ``r = (d * pcp + p) * tp +
t``. A *tensor group* (same d and p) shares the heads and sees the same tokens. The ranks that see different
tokens of one model, ranks of the same t, are a *spread group*: they exchange tokens around the experts, which
are dealt out over spread and tensor group together. Replicas that share no experts (``coupled`` false) are
spread groups of their own.
"""

from __future__ import annotations

import msgspec

from mmx.config import ParallelConfig
from mmx.errors import ConfigError
from mmx.model_config import FP8_BLOCK, ModelConfig

Span = tuple[int, int]  # begin and end


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes: tensor group, data-parallel groups, ranks of a prompt, ranks of a sequence's pages, experts'
    ranges and slices."""

    tp: int = 1
    dp: int = 1
    pcp: int = 1
    dcp: int = 1
    ep: int = 1
    moe_tp: int = 1
    coupled: bool = False
    sequence_parallel: bool = False
    all_to_all: bool = False

    @property
    def world_size(self) -> int:
        return self.dp * self.pcp * self.tp

    def place(self, rank: int) -> tuple[int, int, int]:
        """(d, p, t) of a rank."""
        return rank // (self.pcp * self.tp), rank // self.tp % self.pcp, rank % self.tp

    def tensor_group(self, rank: int) -> tuple[int, ...]:
        first = rank - rank % self.tp
        return tuple(range(first, first + self.tp))

    def context_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that compute parts of the same prompts with the same heads."""
        d, _, t = self.place(rank)
        return tuple((d * self.pcp + p) * self.tp + t for p in range(self.pcp))

    def decode_group(self, rank: int) -> tuple[int, ...]:
        """Neighbours in a tensor group that hold the same KV heads, each for other blocks of a sequence."""
        first = rank - rank % self.dcp
        return tuple(range(first, first + self.dcp))

    def spread_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that exchange tokens around the experts."""
        if not self.coupled:
            return self.context_group(rank)
        return tuple(range(rank % self.tp, self.world_size, self.tp))

    def first_ranks(self) -> list[int]:
        """The first rank of every tensor group: what it samples is what the group samples."""
        return list(range(0, self.world_size, self.tp))


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank holds; ranges are (begin, end). ``config`` counts its own heads and widths, while its
    ``num_experts`` and ``vocab_size`` stay those of the whole model."""

    config: ModelConfig
    heads: Span
    kv_heads: Span
    vocab: Span
    experts: Span
    inter: Span
    shared_inter: Span
    dense_inter: Span
    merges_shared: bool  # the shared expert stands behind the others, which are as wide and all here


def make_layout(parallel: ParallelConfig, config: ModelConfig) -> Layout:
    """The sizes for a model; ConfigError where they do not divide it, with both numbers."""
    tp, dp = parallel.tensor_parallel_size, parallel.data_parallel_size
    pcp = parallel.prefill_context_parallel_size
    if parallel.attention_dp:
        tp, dp = 1, dp * tp
    asked = bool(parallel.expert_parallel) or (parallel.expert_parallel_size or 1) > 1
    coupled = dp > 1 and (parallel.attention_dp or asked)
    num_ranks = tp * pcp * (dp if coupled else 1)
    ep, moe_tp = _expert_sizes(parallel, config, num_ranks)
    layout = Layout(
        tp=tp,
        dp=dp,
        pcp=pcp,
        dcp=parallel.decode_context_parallel_size,
        ep=ep,
        moe_tp=moe_tp,
        coupled=coupled,
        sequence_parallel=parallel.sequence_parallel_norm and tp > 1,
        all_to_all=parallel.all2all_backend == "alltoall",
    )
    _check(layout, config)
    return layout


def share_of(config: ModelConfig, layout: Layout, rank: int) -> Share:
    """Ranges of ``rank``; a checked layout divides everything."""
    _, _, t = layout.place(rank)
    heads = _part(config.num_heads, layout.tp, t)
    # Why: with more ranks than KV heads, and where they share pages, neighbours hold the same heads.
    kv_parts = min(layout.tp // layout.dcp, config.num_kv_heads)
    kv_heads = _part(config.num_kv_heads, kv_parts, t * kv_parts // layout.tp)
    inter = _part(config.inter, layout.moe_tp, _place_in_experts(layout, rank) % layout.moe_tp)
    shared_inter, dense_inter = (_part(w, layout.tp, t) for w in (config.shared_inter, config.dense_inter))
    local = msgspec.structs.replace(
        config,
        num_heads=length(heads),
        num_kv_heads=length(kv_heads),
        num_index_heads=length(kv_heads) if config.num_index_heads else 0,
        inter=length(inter),
        shared_inter=length(shared_inter),
        dense_inter=length(dense_inter),
    )
    return Share(
        config=local,
        heads=heads,
        kv_heads=kv_heads,
        vocab=_part(config.vocab_size, layout.tp, t),
        experts=experts_of(config.num_experts, layout, rank),
        inter=inter,
        shared_inter=shared_inter,
        dense_inter=dense_inter,
        merges_shared=layout.ep == 1
        and layout.moe_tp == layout.tp
        and 0 < config.shared_inter == config.inter,
    )


def experts_of(num_experts: int, layout: Layout, rank: int) -> Span:
    """The range of experts of which ``rank`` holds a slice, or all."""
    return _part(num_experts, layout.ep, _place_in_experts(layout, rank) // layout.moe_tp)


def _place_in_experts(layout: Layout, rank: int) -> int:
    """Number of a rank among those that share the experts."""
    d, p, t = layout.place(rank)
    return (d * layout.pcp + p if layout.coupled else p) * layout.tp + t


def _part(count: int, num_parts: int, index: int) -> Span:
    return count * index // num_parts, count * (index + 1) // num_parts


def length(span: Span) -> int:
    return span[1] - span[0]


def _expert_sizes(parallel: ParallelConfig, config: ModelConfig, num_ranks: int) -> tuple[int, int]:
    """(ranges of experts, slices of an expert), whose product is ``num_ranks``."""
    ep, moe_tp = parallel.expert_parallel_size, parallel.moe_tensor_parallel_size
    if ep is None and moe_tp is None:
        whole = parallel.expert_parallel
        if whole is None:
            whole = config.inter % (num_ranks * (FP8_BLOCK if config.fp8_blocks else 1)) != 0
        return (num_ranks, 1) if whole else (1, num_ranks)
    ep = num_ranks // (moe_tp or 1) if ep is None else ep
    moe_tp = num_ranks // ep if moe_tp is None else moe_tp
    if ep * moe_tp != num_ranks:
        raise ConfigError(
            f"moe_expert_parallel_size {ep} x moe_tensor_parallel_size {moe_tp} must be the {num_ranks} "
            "ranks that share the experts"
        )
    if parallel.expert_parallel is False and ep > 1:
        raise ConfigError(f"moe_expert_parallel_size {ep} contradicts enable_expert_parallel false")
    return ep, moe_tp


def _check(layout: Layout, config: ModelConfig) -> None:
    tp, kv = layout.tp, config.num_kv_heads
    name = "tensor_parallel_size"
    whole = {"num_attention_heads": config.num_heads, "vocab_size": config.vocab_size}
    if any(config.moe_layers) and config.shared_inter:
        whole["shared_intermediate_size"] = config.shared_inter
    if not all(config.moe_layers):
        whole["dense_intermediate_size"] = config.dense_inter
    for key, value in whole.items():
        if value % tp:
            raise ConfigError(f"{name} {tp} must divide {key} {value}")
    if tp % layout.dcp:
        raise ConfigError(f"decode_context_parallel_size {layout.dcp} must divide {name} {tp}")
    if layout.dcp > 1 and layout.pcp > 1:
        raise ConfigError(
            f"decode_context_parallel_size {layout.dcp} can not be combined with "
            f"prefill_context_parallel_size {layout.pcp}"
        )
    tp //= layout.dcp
    if kv % tp and tp % kv:
        raise ConfigError(f"{name} {tp} must divide num_key_value_heads {kv} or be a multiple of it")
    if config.num_experts % layout.ep:
        raise ConfigError(f"{layout.ep} ranges of experts must divide num_local_experts {config.num_experts}")
    if config.inter % layout.moe_tp:
        raise ConfigError(f"{layout.moe_tp} slices of an expert must divide intermediate_size {config.inter}")
    block = FP8_BLOCK if config.fp8_blocks else 1
    if layout.moe_tp > 1 and config.inter // layout.moe_tp % block:
        raise ConfigError(
            f"{layout.moe_tp} slices of intermediate_size {config.inter} cut through the {FP8_BLOCK}-wide "
            "scale blocks of fp8 weights: deal the experts out whole with --enable-expert-parallel"
        )
