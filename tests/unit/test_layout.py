"""Ranges and groups are a partition, for the real models' sizes and every layout of the guides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from mmx.batch import ScheduledBatch, ScheduledSeq
from mmx.config import ParallelConfig, SamplingParams
from mmx.distributed import CallLog, Ranks
from mmx.errors import ConfigError
from mmx.layout import make_layout, share_of
from mmx.model_config import ModelConfig, parse_model_config
from mmx.models import build_model
from mmx.runner.kv_pool import page_bytes
from mmx.runner.parts import part_of
from mmx.server.settings import load_config
from unit.test_model_config import M2, M3

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"m2": parse_model_config(M2), "m3": parse_model_config(M3)}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp8": {"tensor_parallel_size": 8},
    "tp4": {"tensor_parallel_size": 4},
    "tep8": {"tensor_parallel_size": 8, "expert_parallel": True},
    "trt-guide": {"tensor_parallel_size": 8, "expert_parallel_size": 8, "attention_dp": True},
    "a3-guide": {"tensor_parallel_size": 4, "data_parallel_size": 4, "expert_parallel": True},
    "a3-long": {"tensor_parallel_size": 8, "prefill_context_parallel_size": 2},
    "replicas": {"tensor_parallel_size": 2, "data_parallel_size": 4},
    "2x4": {"tensor_parallel_size": 4, "data_parallel_size": 2, "expert_parallel_size": 2},
}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_shares_cover_the_model(name: str, family: str) -> None:
    config = MODELS[family]
    layout = make_layout(ParallelConfig(**LAYOUTS[name]), config)
    shares = [share_of(config, layout, rank) for rank in range(layout.world_size)]
    for rank, share in enumerate(shares):
        group = layout.tensor_group(rank)
        assert rank in group and rank in layout.spread_group(rank) and rank in layout.context_group(rank)
        for field, total in (("heads", config.num_heads), ("vocab", config.vocab_size)):
            assert covered([getattr(shares[other], field) for other in group], total) == {1}
        copies = max(layout.tp // config.num_kv_heads, 1)
        assert covered([shares[other].kv_heads for other in group], config.num_kv_heads) == {copies}
        # Every query head meets its own KV head.
        per_kv = config.num_heads // config.num_kv_heads
        assert {head // per_kv for head in range(*share.heads)} == set(range(*share.kv_heads))
        experts = {other for first in layout.spread_group(rank) for other in layout.tensor_group(first)}
        for expert in range(config.num_experts):
            owners = [shares[other] for other in experts if expert in range(*shares[other].experts)]
            spans = sorted(owner.inter for owner in owners)
            assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == config.inter


def covered(ranges: list[tuple[int, int]], total: int) -> set[int]:
    """How often the numbers below ``total`` are covered."""
    counts = Counter(i for span in ranges for i in range(*span))
    assert sorted(counts) == list(range(total))
    return set(counts.values())


def test_fp8_experts_that_can_not_be_cut_are_dealt_out() -> None:
    fp8 = msgspec.structs.replace(MODELS["m2"], fp8_blocks=True)
    layout = make_layout(ParallelConfig(tensor_parallel_size=8), fp8)
    assert (layout.ep, layout.moe_tp) == (8, 1)
    assert make_layout(ParallelConfig(tensor_parallel_size=4), fp8).moe_tp == 4
    with pytest.raises(ConfigError, match="8 slices of intermediate_size 1536 cut through the 128-wide"):
        make_layout(ParallelConfig(tensor_parallel_size=8, expert_parallel=False), fp8)


@pytest.mark.parametrize(
    ("change", "parallel", "text"),
    [
        ({}, {"tensor_parallel_size": 5}, "tensor_parallel_size 5 must divide num_attention_heads 64"),
        ({"num_heads": 60, "num_kv_heads": 10}, {"tensor_parallel_size": 4}, "num_key_value_heads 10"),
        ({"vocab_size": 1001}, {"tensor_parallel_size": 2}, "must divide vocab_size 1001"),
        ({"num_experts": 12}, {"tensor_parallel_size": 8, "expert_parallel": True}, "num_local_experts 12"),
        (
            {},
            {"tensor_parallel_size": 8, "expert_parallel_size": 3},
            "3 x moe_tensor_parallel_size 2 must be",
        ),
        (
            {},
            {"tensor_parallel_size": 8, "expert_parallel_size": 8, "expert_parallel": False},
            "contradicts enable_expert_parallel false",
        ),
    ],
)
def test_sizes_that_do_not_divide(change: dict[str, int], parallel: dict[str, Any], text: str) -> None:
    config: ModelConfig = msgspec.structs.replace(MODELS["m3"], **change)
    with pytest.raises(ConfigError, match=text):
        make_layout(ParallelConfig(**parallel), config)


def seq(name: str, num_tokens: int, start: int, samples: bool) -> ScheduledSeq:
    return ScheduledSeq(
        request_id=name,
        token_ids=list(range(start, start + num_tokens)),
        start=start,
        block_ids=[0, 1, 2],
        samples=samples,
        params=SamplingParams(),
        seed=0,
        num_output_tokens=0,
        num_prompt_tokens=0,
    )


def test_context_ranks_share_every_sequence() -> None:
    layout = make_layout(ParallelConfig(prefill_context_parallel_size=4), MODELS["m3"])
    batch = ScheduledBatch(step=1, seqs=[seq("a", 1, 9, True), seq("b", 1, 5, True), seq("c", 10, 0, False)])
    parts = [part_of(batch, layout, rank) for rank in range(4)]
    for name, tokens in (("a", [9]), ("b", [5]), ("c", list(range(10)))):
        runs = [s for part in parts for s in part.batch.seqs if s.request_id == name]
        assert all(s.token_ids == list(range(s.start, s.start + len(s.token_ids))) for s in runs)
        assert sorted(token for s in runs for token in s.token_ids) == tokens
        assert sum(s.samples for s in runs) == (name != "c")
    assert all(part.token_counts == parts[0].token_counts for part in parts)
    assert max(parts[0].token_counts) <= 4


def test_groups_have_their_own_sequences() -> None:
    flags = {"data_parallel_size": 3, "tensor_parallel_size": 2, "expert_parallel": True}
    config = msgspec.structs.replace(MODELS["m3"], num_experts=12)
    layout = make_layout(ParallelConfig(**flags), config)
    batch = ScheduledBatch(
        step=1, seqs=[seq("a", 3, 0, True), seq("b", 1, 5, True), seq("c", 2, 0, True)], group_sizes=[2, 0, 1]
    )
    names = [[s.request_id for s in part_of(batch, layout, rank).batch.seqs] for rank in range(6)]
    assert names == [["a", "b"], ["a", "b"], [], [], ["c"], ["c"]]
    assert {part_of(batch, layout, rank).token_counts for rank in range(6)} == {(4, 0, 2)}
    assert not part_of(batch, layout, 2).idle
    replicas = make_layout(ParallelConfig(data_parallel_size=3), config)
    assert [part_of(batch, replicas, rank).idle for rank in range(3)] == [False, True, False]


PLANS = [line for line in (ROOT / "docs" / "parallel.md").read_text().splitlines() if " B |" in line]


@pytest.mark.parametrize("line", PLANS, ids=lambda line: line.split("|")[2].strip())
def test_plans_on_paper(line: str) -> None:
    _, _, flags, num_ranks, weights, experts, kv, _ = (cell.strip() for cell in line.split("|"))
    layout = make_layout(load_config(flags.strip("`").split(), {}).parallel, MODELS["m3"])
    ranks = Ranks(MODELS["m3"], layout, layout.world_size - 1, CallLog())
    sizes = {
        name: p.numel() * p.element_size()
        for name, p in build_model(MODELS["m3"], torch.bfloat16, ranks).named_parameters()
    }
    assert layout.world_size == int(num_ranks)
    assert weights == f"{sum(sizes.values()) / 2**30:.2f} GiB"
    num_bytes = sum(size for name, size in sizes.items() if ".experts." in name or ".shared." in name)
    assert experts == f"{num_bytes / 2**30:.2f} GiB"
    assert kv == f"{page_bytes(ranks.share.config, torch.bfloat16) // 128:,} B"


def test_every_plan_is_held() -> None:
    assert len(PLANS) == 6
