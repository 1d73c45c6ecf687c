"""Ops in destination-passing form on top of the references, for devices that lack a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmx.ops import reference


def _copy(outs: tuple[torch.Tensor, ...], results: Any) -> None:
    results = results if isinstance(results, tuple) else (results,)
    for out, result in zip(outs, results, strict=True):
        out.copy_(result)


def _outputs(name: str, count: int) -> Callable[..., None]:
    """The op's first ``count`` arguments are outputs, the others are the reference's arguments."""

    def run(*args: Any) -> None:
        _copy(args[:count], getattr(reference, name)(*args[count:]))

    return run


def _moe_router(
    topk_ids: Any, topk_weights: Any, x: Any, gate: Any, bias: Any, ws: Any, scale: float
) -> None:
    _copy((topk_ids, topk_weights), reference.moe_router(x, gate, bias, topk_ids.shape[1], scale))


def _moe_plan(offsets: Any, rows: Any, positions: Any, topk_ids: Any, ws: Any, first_expert: int) -> None:
    results = reference.moe_plan(topk_ids, first_expert, offsets.shape[0] - 1)
    _copy((offsets, rows, positions), results)


def _moe_gate_up(out: Any, x: Any, w: Any, s: Any, offsets: Any, rows: Any, ws: Any, *act: Any) -> None:
    out.copy_(reference.moe_gate_up(x, w, s, offsets, rows, *act))


def _moe_down(out: Any, x: Any, w: Any, s: Any, offsets: Any, ws: Any) -> None:
    out.copy_(reference.moe_down(x, w, s, offsets))


def _select_blocks(ids: Any, q: Any, k: Any, table: Any, cu: Any, lens: Any, ws: Any, *rest: Any) -> None:
    ids.copy_(reference.select_blocks(q, k, table, cu, lens, rest[0], ids.shape[2], *rest[1:]))


def _attention(name: str, num_inputs: int) -> Callable[..., None]:
    def run(out: Any, *args: Any) -> None:
        out.copy_(getattr(reference, name)(*args[:num_inputs], *args[num_inputs + 1 :]))

    return run


def _sample(token_ids: Any, *args: Any) -> None:
    token_ids.copy_(reference.sample(*args[:-1]))


def _logprobs(lp: Any, ranks: Any, ids: Any, top: Any, logits: Any, token_ids: Any, ws: Any) -> None:
    _copy((lp, ranks, ids, top), reference.logprobs(logits, token_ids, ids.shape[1]))


def _fp8_rows(name: str) -> Callable[..., None]:
    def run(out: Any, *args: Any) -> None:
        out.copy_(getattr(reference, name)(*args, out.dtype))

    return run


FALLBACKS: dict[str, Callable[..., None]] = {
    "rms_norm": _outputs("rms_norm", 1),
    "add_rms_norm": lambda out, residual, *args: out.copy_(reference.add_rms_norm(residual, *args)),
    "rope": _outputs("rope", 1),
    "kv_store": lambda *args: reference.kv_store(*args),
    "index_k_store": lambda *args: reference.index_k_store(*args),
    "norm_rope_store": lambda *args: reference.norm_rope_store(*args),
    "select_blocks": _select_blocks,
    "paged_attention": _attention("paged_attention", 6),
    "sparse_attention": _attention("sparse_attention", 7),
    "gated_act": _outputs("gated_act", 1),
    "moe_router": _moe_router,
    "moe_plan": _moe_plan,
    "moe_gate_up": _moe_gate_up,
    "moe_down": _moe_down,
    "moe_combine": _outputs("moe_combine", 1),
    "linear": lambda out, x, weight: out.copy_(reference.linear(x, weight, out.dtype)),
    "embedding": _outputs("embedding", 1),
    "fp8_block_dequant": lambda out, x, scale: out.copy_(reference.fp8_block_dequant(x, scale, out.dtype)),
    "fp8_quantize": _outputs("fp8_quantize", 2),
    "fp8_linear": _fp8_rows("fp8_linear"),
    "fp8_moe_gate_up": lambda out, scale, *args: _copy(
        (out, scale), reference.fp8_moe_gate_up(*args[:6], *args[7:])
    ),
    "fp8_moe_down": _fp8_rows("fp8_moe_down"),
    "mxfp8_dequant": lambda out, x, scale: out.copy_(reference.mxfp8_dequant(x, scale, out.dtype)),
    "adjust_logits": lambda *args: reference.adjust_logits(*args[:-1]),
    "sample": _sample,
    "logprobs": _logprobs,
}
