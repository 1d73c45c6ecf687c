"""The layouts that are compared with one rank, and what each of them must hold and send.

The expected numbers are written down from the models' shapes alone, without ``mmx.layout``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from models.tiny import M2, M3, VARIANTS


class Case(NamedTuple):
    """``sizes``: tp, dp and pcp of attention, ep and moe_tp of the experts; ``coupled``: dp ranks share
    them."""

    family: str
    flags: dict[str, Any]
    sizes: tuple[int, int, int, int, int]
    coupled: bool = False
    variant: str = "base"
    dcp: int = 1
    graphs: bool = False

    @property
    def world(self) -> int:
        return self.sizes[0] * self.sizes[1] * self.sizes[2]

    @property
    def sequence_parallel(self) -> bool:
        return bool(self.flags.get("sequence_parallel_norm"))


def _tp(size: int, **more: Any) -> dict[str, Any]:
    return {"tensor_parallel_size": size} | more


def _dp(size: int, tp: int = 1, **more: Any) -> dict[str, Any]:
    return {"data_parallel_size": size, "tensor_parallel_size": tp} | more


def _pcp(size: int, tp: int = 1, **more: Any) -> dict[str, Any]:
    return {"prefill_context_parallel_size": size, "tensor_parallel_size": tp} | more


EP = {"expert_parallel": True}
DCP = {"decode_context_parallel_size": 2}
A2A = {"all2all_backend": "alltoall"}
SP = {"sequence_parallel_norm": True}
CASES: dict[str, Case] = {
    "m2-tp2": Case("m2", _tp(2), (2, 1, 1, 1, 2)),
    "m3-tp2": Case("m3", _tp(2), (2, 1, 1, 1, 2)),
    # 4 ranks for 2 KV heads: neighbours hold the same head.
    "m2-tp4-replicated-kv": Case("m2", _tp(4), (4, 1, 1, 1, 4)),
    "m3-tp4-replicated-kv": Case("m3", _tp(4), (4, 1, 1, 1, 4)),
    "m2-tp4-four-kv-heads": Case("m2", _tp(4), (4, 1, 1, 1, 4), variant="kv4"),
    "m2-tp2-wide-heads": Case("m2", _tp(2), (2, 1, 1, 1, 2), variant="wide_heads"),
    "m3-tp2-three-dense": Case("m3", _tp(2), (2, 1, 1, 1, 2), variant="three_dense"),
    "m2-tp2-fp8": Case("m2", _tp(2), (2, 1, 1, 2, 1), variant="fp8"),
    "m2-tep2": Case("m2", _tp(2, **EP), (2, 1, 1, 2, 1)),
    "m3-tep2": Case("m3", _tp(2, **EP), (2, 1, 1, 2, 1)),
    "m3-tep4": Case("m3", _tp(4, **EP), (4, 1, 1, 4, 1)),
    "m3-tp4-experts-2x2": Case("m3", _tp(4, expert_parallel_size=2), (4, 1, 1, 2, 2)),
    "m2-tep4-12-experts": Case("m2", _tp(4, **EP), (4, 1, 1, 4, 1), variant="experts"),
    "m2-dep2": Case("m2", _dp(2, **EP), (1, 2, 1, 2, 1), True),
    "m3-dep2": Case("m3", _dp(2, **EP), (1, 2, 1, 2, 1), True),
    "m3-dep4-attention-dp": Case(
        "m3", _tp(4, attention_dp=True, expert_parallel_size=4), (1, 4, 1, 4, 1), True
    ),
    "m3-attention-dp2-sliced-experts": Case("m3", _tp(2, attention_dp=True), (1, 2, 1, 1, 2), True),
    "m2-dp2-tp2-ep4": Case("m2", _dp(2, 2, **EP), (2, 2, 1, 4, 1), True),
    "m3-dp2-tp2-ep2x2": Case("m3", _dp(2, 2, expert_parallel_size=2), (2, 2, 1, 2, 2), True),
    "m3-dep2-all-to-all": Case("m3", _dp(2, **EP, **A2A), (1, 2, 1, 2, 1), True),
    "m2-dp2-tp2-ep4-all-to-all": Case("m2", _dp(2, 2, **EP, **A2A), (2, 2, 1, 4, 1), True),
    "m3-dep4-2x2-all-to-all": Case("m3", _dp(4, expert_parallel_size=2, **A2A), (1, 4, 1, 2, 2), True),
    # Decode steps as graphs compute them: padded to one size on all ranks.
    "m3-tp2-graphs": Case("m3", _tp(2), (2, 1, 1, 1, 2), graphs=True),
    "m3-dep4-graphs": Case("m3", _dp(4, **EP), (1, 4, 1, 4, 1), True, graphs=True),
    "m2-dp2-tp2-ep4-graphs": Case("m2", _dp(2, 2, **EP), (2, 2, 1, 4, 1), True, graphs=True),
    "m2-dp2-replicas": Case("m2", _dp(2), (1, 2, 1, 1, 1)),
    "m3-dp2-tp2-replicas": Case("m3", _dp(2, 2), (2, 2, 1, 1, 2)),
    "m2-prefill-cp2": Case("m2", _pcp(2), (1, 1, 2, 1, 2)),
    "m3-prefill-cp2-ep": Case("m3", _pcp(2, **EP), (1, 1, 2, 2, 1)),
    "m3-prefill-cp2-tp2": Case("m3", _pcp(2, 2, **EP), (2, 1, 2, 4, 1)),
    "m2-decode-cp2": Case("m2", _tp(2, **DCP), (2, 1, 1, 1, 2), dcp=2),
    "m3-decode-cp2": Case("m3", _tp(2, **DCP), (2, 1, 1, 1, 2), dcp=2),
    "m3-tp4-decode-cp2": Case("m3", _tp(4, **DCP), (4, 1, 1, 1, 4), dcp=2),
    "m3-decode-cp4-ep": Case("m3", _tp(4, decode_context_parallel_size=4, **EP), (4, 1, 1, 4, 1), dcp=4),
    "m3-dp2-tp2-decode-cp2-ep4": Case("m3", _dp(2, 2, **EP, **DCP), (2, 2, 1, 4, 1), True, dcp=2),
    "m2-tp2-sp": Case("m2", _tp(2, **SP), (2, 1, 1, 1, 2)),
    "m3-tp4-sp": Case("m3", _tp(4, **SP), (4, 1, 1, 1, 4)),
    "m3-dp2-tp2-ep4-sp": Case("m3", _dp(2, 2, **EP, **SP), (2, 2, 1, 4, 1), True),
}
KV4 = {"num_key_value_heads": 4}


def variant_of(case: Case) -> str | dict[str, Any]:
    return KV4 if case.variant == "kv4" else case.variant


class Shape(NamedTuple):
    """Sizes of a tiny model."""

    layers: int
    moe: int
    sparse: int
    hidden: int
    heads: int
    kv: int
    dim: int
    experts: int
    inter: int
    shared: int
    dense: int
    vocab: int
    page: int


def shape_of(case: Case) -> Shape:
    change = dict(KV4 if case.variant == "kv4" else VARIANTS[case.variant])
    raw = (M2 if case.family == "m2" else M3) | change
    layers, m3 = raw["num_hidden_layers"], case.family == "m3"
    plain = change.get("dense_layers", 1) if m3 else 0
    return Shape(
        layers=layers,
        moe=layers - plain,
        sparse=layers - plain if m3 else 0,
        hidden=raw["hidden_size"],
        heads=raw["num_attention_heads"],
        kv=raw["num_key_value_heads"],
        dim=raw["head_dim"],
        experts=raw["num_local_experts"],
        inter=raw["intermediate_size"],
        shared=raw.get("shared_intermediate_size", 0),
        dense=raw.get("dense_intermediate_size", 0),
        vocab=raw["vocab_size"],
        page=change.get("sparse", {}).get("sparse_block_size", 8) if m3 else 128,
    )


def weight_bytes(case: Case) -> int:
    """Bytes of the parameters on each rank, fp32 but for fp8 matrices."""
    s, (tp, _, _, ep, moe_tp) = shape_of(case), case.sizes
    kv = max(s.kv // (tp // case.dcp), 1)
    rows = s.heads // tp + 2 * kv
    attention = s.layers * (rows + s.heads // tp) * s.dim * s.hidden
    attention += s.sparse * (kv + 1) * s.dim * s.hidden
    if case.family == "m2":
        norms = s.layers * (s.heads // tp + kv) * s.dim
    else:
        norms = (2 * s.layers + 2 * s.sparse) * s.dim
    norms += (2 * s.layers + 1) * s.hidden
    experts = s.moe * (s.experts // ep) * 3 * (s.inter // moe_tp) * s.hidden
    router = s.moe * (s.hidden + 1) * s.experts
    mlp = 3 * s.hidden * (s.moe * s.shared + (s.layers - s.moe) * s.dense) // tp
    matrices, rest = attention + experts, norms + router + mlp + 2 * s.vocab // tp * s.hidden
    if case.variant == "fp8":  # a byte each, and a scale per 128 x 128 of them
        return 4 * rest + matrices + 4 * matrices // 128**2
    return 4 * (rest + matrices)


def page_bytes(case: Case) -> int:
    """fp32 bytes of one page over all layers on each rank."""
    s = shape_of(case)
    kv = max(s.kv // (case.sizes[0] // case.dcp), 1)
    return 4 * s.page * s.dim * (2 * kv * s.layers + s.sparse)


def collectives(
    case: Case, num_forwards: int, num_busy: int, num_logits: int, num_samplings: int
) -> Counter[tuple[str, str]]:
    """Calls of a rank in so many forward passes, of which so many have tokens of its own, so many give logits
    and so many sample."""
    s, (tp, _, pcp, _, _) = shape_of(case), case.sizes
    calls: Counter[tuple[str, str]] = Counter()
    if tp > 1:
        if case.sequence_parallel:
            calls["reduce_scatter", "tensor"] += num_busy * (1 + 2 * s.layers)
            # Before every projection and at the end.
            calls["all_gather", "tensor"] += num_busy * (2 * s.layers + 1)
        else:
            # The last ones are of the tokens with logits only: one, or both of the last layer where no other
            # rank is told how many tokens there are.
            owns = not case.coupled and pcp == case.dcp == 1
            calls["all_reduce", "tensor"] += num_busy * (2 * s.layers - owns) + num_logits * (1 + owns)
        calls["all_reduce", "tensor"] += num_busy * s.layers * (case.family == "m2")
        calls["all_gather", "tensor"] += num_samplings
    if pcp > 1:
        calls["all_gather", "context"] += num_forwards * s.layers
    if "all2all_backend" in case.flags:
        # Counts, tokens, routes, and the sums back.
        calls["all_to_all", "spread"] += 4 * num_forwards * s.moe
    elif pcp > 1 or case.coupled:
        calls["all_gather", "spread"] += num_forwards * s.moe
        calls["reduce_scatter", "spread"] += num_forwards * s.moe
    if case.dcp > 1:
        # Queries, sums of exponentials, on sparse layers the proposed blocks.
        calls["all_gather", "decode"] += num_busy * (2 * s.layers + s.sparse)
        calls["reduce_scatter", "decode"] += num_busy * s.layers
    if case.world > 1:
        # A lock for each rank in turn, and the smallest budget for pages.
        calls["all_gather", "world"] += case.world + 1
    return +calls
