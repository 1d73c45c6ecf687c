"""Whole models in bf16 against transformers.

Routing and block selection are discontinuous: one flipped choice changes everything after it. So the oracle
is made to take mmx's choices. Then logits are continuous in the rounding and have a budget, twice what the
oracle's own bf16 run loses; and each choice must be one of the best by the oracle's fp32 scores, up to the
budget of those scores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import apply_rotary_pos_emb

from mmx import ops
from models.harness import all_logits, random_ids, tiny_runner
from models.oracle import load_oracle
from models.tiny import write_tiny_checkpoint

Tensor = torch.Tensor


def record(monkeypatch: pytest.MonkeyPatch, name: str, pick: Callable[..., Tensor]) -> list[Tensor]:
    """The results (through ``pick``) of every call of an op, in order of the layers."""
    original, log = getattr(ops, name), []

    def run(*args: object, **kwargs: object) -> object:
        result = original(*args, **kwargs)
        log.append(pick(result).long())
        return result

    monkeypatch.setattr(ops, name, run)
    return log


def forced_router(gate: torch.nn.Module, topk_ids: Tensor, log: list[Tensor]) -> Callable[..., object]:
    def forward(hidden: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(hidden.reshape(-1, hidden.shape[-1]).float(), gate.weight)
        scores = logits.sigmoid()
        log.append(scores + (gate.e_score_correction_bias if bias is None else bias))
        weights = scores.gather(1, topk_ids)
        return logits, weights / weights.sum(-1, keepdim=True), topk_ids

    return forward


def forced_indexer(indexer: torch.nn.Module, block_ids: Tensor, log: list[Tensor]) -> Callable[..., object]:
    def forward(hidden: Tensor, cos_sin: tuple[Tensor, Tensor], past: object, positions: Tensor) -> Tensor:
        def heads(proj: torch.nn.Module, norm: torch.nn.Module) -> Tensor:
            return norm(proj(hidden).unflatten(-1, (-1, indexer.head_dim))).transpose(1, 2)

        q, k = heads(indexer.q_proj, indexer.q_norm), heads(indexer.k_proj, indexer.k_norm)
        q, k = apply_rotary_pos_emb(q, k, *cos_sin)
        scores = q[0].float() @ k[0].float().transpose(-1, -2)
        hidden_keys = torch.arange(k.shape[2]) > positions[0, :, None]
        scores = scores.masked_fill(hidden_keys, float("-inf"))
        scores = F.pad(scores, (0, -k.shape[2] % indexer.block_size), value=float("-inf"))
        log.append(scores.unflatten(-1, (-1, indexer.block_size)).amax(-1))
        return block_ids.transpose(0, 1)[None]

    return forward


def forced_run(
    folder: Path, dtype: torch.dtype, ids: list[int], experts: list[Tensor], blocks: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [num_tokens, vocab], router scores [layers, num_tokens, num_experts] and block scores
    [layers, num_index_heads, num_tokens, num_blocks] of the oracle under the given choices."""
    oracle, router_log, block_log = load_oracle(folder, dtype), [], []
    layers = list(oracle.model.layers)
    for layer, chosen in zip([x for x in layers if hasattr(x.mlp, "gate")], experts, strict=True):
        layer.mlp.gate.forward = forced_router(layer.mlp.gate, chosen, router_log)
    indexers = [x.self_attn.indexer for x in layers if getattr(x.self_attn, "indexer", None) is not None]
    for indexer, chosen in zip(indexers, blocks, strict=True):
        indexer.forward = forced_indexer(indexer, chosen, block_log)
    logits = oracle(torch.tensor([ids])).logits[0].float()
    return logits, torch.stack(router_log), torch.stack(block_log) if block_log else None


def assert_best(truth: Tensor, low: Tensor, chosen: Tensor) -> None:
    """In each layer, ``chosen`` (a mask) are the best of the scores ``truth`` [layers, ..., candidates] up to
    the budget (both scores of a pair may be off by it), and it leaves many rows without any doubt."""
    for scores, rounded, kept in zip(truth, low, chosen, strict=True):
        doubt = 2 * budget_of(rounded, scores)
        worst_kept = scores.masked_fill(~kept, float("inf")).amin(-1)
        best_left = scores.masked_fill(kept, float("-inf")).amax(-1)
        assert (best_left - worst_kept <= doubt).all()
        assert (worst_kept - best_left > doubt).float().mean() > 0.1


def budget_of(low: Tensor, truth: Tensor) -> float:
    """Twice the largest error of the oracle's bf16 run."""
    finite = truth.isfinite()
    return 2 * float((low[finite] - truth[finite]).abs().max())


@pytest.mark.parametrize(
    ("family", "variant", "config_form"),
    [
        ("m2", "base", "raw"),
        ("m2", "wide_heads", "normalised"),
        ("m3", "base", "raw"),
        ("m3", "experts", "raw"),
        ("m3", "three_dense", "normalised"),
    ],
)
@torch.inference_mode()
def test_bf16(
    family: str, variant: str, config_form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_checkpoint(
        tmp_path, family, torch.bfloat16, 21, config_form=config_form, variant=variant
    )
    runner = tiny_runner(folder)
    assert runner.dtype == "bfloat16"
    topk = runner.model.layers[-1].mlp.gate.topk  # the shared expert, if it is merged, comes behind them
    experts = record(monkeypatch, "moe_router_plan", lambda result: result[0][:, :topk])
    blocks = record(monkeypatch, "select_blocks", lambda result: result)
    ids = random_ids(150, 22)
    logits = all_logits(runner, ids)

    truth, router_truth, block_truth = forced_run(folder, torch.float32, ids, experts, blocks)
    low, router_low, block_low = forced_run(folder, torch.bfloat16, ids, experts, blocks)

    budget = budget_of(low, truth)
    assert (logits - truth).abs().max() <= budget
    top = truth.topk(2).values
    sure = top[:, 0] - top[:, 1] > 2 * budget
    assert sure.any()
    assert (logits.argmax(-1) == truth.argmax(-1))[sure].all()

    chosen = torch.zeros_like(router_truth, dtype=torch.bool).scatter(-1, torch.stack(experts), True)
    assert_best(router_truth, router_low, chosen)
    if block_truth is None:
        return
    # Only tokens with more visible blocks than are kept have a choice; the own block is no choice.
    kept = torch.stack(blocks).transpose(1, 2)
    own = torch.arange(len(ids)) // runner.block_size
    chosen = torch.zeros((*block_truth.shape[:-1], block_truth.shape[-1] + 1), dtype=torch.bool)
    chosen = chosen.scatter(-1, kept.masked_fill(kept < 0, block_truth.shape[-1]), True)[..., :-1]
    assert (chosen.sum(-1) == torch.clamp(own + 1, max=kept.shape[-1])).all()
    assert chosen[:, :, torch.arange(len(ids)), own].all()
    choosing = own >= kept.shape[-1]
    is_own = F.one_hot(own, block_truth.shape[-1]).bool()[choosing]
    scores, rounded = (x[:, :, choosing].masked_fill(is_own, float("inf")) for x in (block_truth, block_low))
    assert_best(scores, rounded, chosen[:, :, choosing])
