"""Times the selector and attention ops beside other engines' kernels, in one process, by the same timer.

usage: peers_attention.py RUN_PY PEERS_DIR [section ...]

Sections: selector_decode sparse_decode selector_prefill sparse_prefill dense_decode dense_prefill; all by
default. RUN_PY is a script that offers ``med`` (timer), ``paged`` (page table and lengths),
``overlapping_blocks`` and ``load_vllm_ops`` (loads the peers' kernels from PEERS_DIR). Prints a line per
case: ours, the peer's, their ratio; selector and sparse decode warm and cold (inputs take turns until none is
left in the L2), and ours on fp8 pages, sparse prefill on fp8 pages too.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import mmx.ops  # noqa: F401 - registers torch.ops.mmx

CUDA, BF16, FP8 = torch.device("cuda"), torch.bfloat16, torch.float8_e4m3fn
HEADS, KV_HEADS, DIM, PAGE, TOPK = 64, 4, 128, 128, 16
SCALE = DIM**-0.5
COLD_BYTES = 200_000_000
OPS = torch.ops.mmx
Run = Callable[[], object]


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_run", path)
    assert spec and spec.loader, f"{path} is no Python script"
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers_run"] = module
    spec.loader.exec_module(module)
    return module


def call(op: str, tensors: tuple[torch.Tensor, ...], *numbers: object) -> Run:
    """One call of ``op`` with its scratch already there."""
    size = getattr(OPS, f"{op}_workspace")(*tensors, *numbers)
    scratch = torch.empty(size, dtype=torch.int8, device=CUDA)
    return lambda: getattr(OPS, op)(*tensors, scratch, *numbers)


def compare(case: str, ours: Run, peer: Run | None, graph: bool, flops: float = 0) -> None:
    ours()
    torch.cuda.synchronize()  # Why: the timer uses its own stream, which does not wait for the inputs.
    us = script.med(ours, graph)
    line = f"{case:40s} {us:9.2f} us" + (f" {flops / us / 1e6:6.1f} TFLOP/s" if flops else "")
    if peer is not None:
        peer()
        torch.cuda.synchronize()
        theirs = script.med(peer, graph)
        line += f"   peer {theirs:9.2f} us   {theirs / us:.2f}x"
    print(line, flush=True)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=CUDA, dtype=BF16)


def one_each(batch: int) -> torch.Tensor:
    return torch.arange(batch + 1, device=CUDA, dtype=torch.int32)


def sets_of(bytes_of_one: int) -> int:
    """Inputs to take turns with, so that none of a call's bytes is still in the L2 from its last turn."""
    return -(-COLD_BYTES // bytes_of_one)


def in_turn(runs: list[Run]) -> Run:
    """Calls the next of ``runs`` each time."""
    turns = itertools.cycle(runs)
    return lambda: next(turns)()


def compare_decode(case: str, ours: list[Run], codes: list[Run], peer: list[Run] | None) -> None:
    """Warm (the first set again and again) and cold (all sets in turn); ``codes``: ours on fp8 pages."""
    for name, take in (("warm", slice(0, 1)), ("cold", slice(None))):
        theirs = None if peer is None else in_turn(peer[take])
        compare(f"{case}, {name}", in_turn(ours[take]), theirs, True)
        compare(f"{case}, {name}, fp8 pages", in_turn(codes[take]), None, True)


def selector_decode() -> None:
    contexts = (4096, 32768, 131072)
    for batch, context in [(b, c) for b in (1, 8, 32) for c in contexts] + [(128, 32768)]:
        count = sets_of(batch * context * DIM)
        _, tables, index_k, lens = script.paged(batch * count, context)
        codes, q = index_k.to(FP8), randn(batch, KV_HEADS, DIM)
        ids = torch.empty(batch, KV_HEADS, TOPK, device=CUDA, dtype=torch.int32)
        picked = torch.empty(KV_HEADS, batch, TOPK, device=CUDA, dtype=torch.int32)
        lens = lens[:batch].clone()

        def ours(k, table, q=q, ids=ids, lens=lens, batch=batch):
            return call("select_blocks", (ids, q, k, table, one_each(batch), lens), 1, 0, 1)

        def peer(table, q=q, k=index_k, lens=lens, context=context, picked=picked):
            select = index_topk.minimax_m3_index_decode
            return lambda: select(q, k, table, lens, context, TOPK, 0, 1, KV_HEADS, 1, 1, out=picked)

        tables = tables.split(batch)
        name = f"selector decode {batch} x {context}"
        compare_decode(
            name,
            [ours(index_k, t) for t in tables],
            [ours(codes, t) for t in tables],
            [peer(t) for t in tables],
        )


def sparse_decode(context: int = 32768) -> None:
    for batch in (1, 8, 32, 128):
        count = sets_of(batch * KV_HEADS * TOPK * PAGE * DIM * 2)
        # Only the chosen pages are read: sets may share a pool, their choices hardly meet.
        pools = min(count, max(1, 16 // batch))
        pages, tables, _, lens = script.paged(batch * pools, context)
        cache = randn(batch * pools * pages, KV_HEADS, PAGE, 2 * DIM)
        k, v = (half.contiguous() for half in cache.split(DIM, -1))
        codes = k.to(FP8), v.to(FP8)
        q, scales = randn(batch, HEADS, DIM), (torch.ones(KV_HEADS, device=CUDA),) * 2
        out, lens, sets = torch.empty_like(q), lens[:batch].clone(), []
        for i in range(count):
            earlier = torch.rand(batch, KV_HEADS, pages - 1, device=CUDA).argsort(-1)
            earlier = earlier[..., : TOPK - 1].sort(-1).values
            ids = torch.nn.functional.pad(earlier, (0, 1), value=pages - 1).int()
            sets.append((ids, tables.split(batch)[i % pools]))

        def ours(pages, ids, table, *scales, q=q, out=out, lens=lens, batch=batch):
            tensors = (out, q, *pages, ids, table, one_each(batch), lens)
            return call("sparse_attention", tensors, 1, SCALE, *scales)

        def peer(ids, table, q=q, cache=cache, lens=lens, out=out):
            picked = ids.transpose(0, 1).contiguous()
            attend = sparse_attn.minimax_m3_sparse_attn_decode
            return lambda: attend(q, cache, picked, table, lens, KV_HEADS, SCALE, out, 1)

        compare_decode(
            f"sparse decode {batch} x {context}",
            [ours((k, v), *each) for each in sets],
            [ours(codes, *each, *scales) for each in sets],
            [peer(*each) for each in sets],
        )


PREFILLS = [(2048, 8192), (8192, 8192), (8192, 32768), (8192, 131072)]


def selector_prefill() -> None:
    for new, context in PREFILLS:
        _, table, index_k, lens = script.paged(1, context)
        q = randn(new, KV_HEADS, DIM)
        cu = torch.tensor([0, new], device=CUDA, dtype=torch.int32)
        before = torch.tensor([context - new], device=CUDA, dtype=torch.int32)
        ids = torch.empty(new, KV_HEADS, TOPK, device=CUDA, dtype=torch.int32)
        ours = call("select_blocks", (ids, q, index_k, table, cu, lens), new, 0, 1)

        def peer(q=q, k=index_k, table=table, cu=cu, lens=lens, before=before, new=new, context=context):
            scores = index_topk.minimax_m3_index_score(q, k, table, cu, lens, before, new, context, KV_HEADS)
            return index_topk.minimax_m3_index_topk(scores, cu, before, new, TOPK, 0, 1)

        compare(f"selector prefill {new} @ {context}", ours, peer, False)


def random_blocks(new: int, context: int) -> torch.Tensor:
    """[new, KV_HEADS, TOPK]: each token's own block and random earlier ones."""
    own = (torch.arange(context - new, context, device=CUDA) // PAGE)[:, None, None]
    block = torch.arange(context // PAGE, device=CUDA)
    order = torch.rand(new, KV_HEADS, len(block), device=CUDA)
    order = order.masked_fill(block > own, 2.0).masked_fill(block == own, -1.0)
    chosen = order.argsort(-1)[..., :TOPK]
    hidden = len(block)
    chosen = chosen.masked_fill(chosen > own, hidden).sort(-1).values
    return chosen.masked_fill(chosen == hidden, -1).int()


def sparse_prefill() -> None:
    for new, context, overlapping in [*((*case, False) for case in PREFILLS), (8192, 32768, True)]:
        pages, table, _, lens = script.paged(1, context)
        cache = randn(pages, KV_HEADS, PAGE, 2 * DIM)
        k, v = (half.contiguous() for half in cache.split(DIM, -1))
        q = randn(new, HEADS, DIM)
        out, peer_out = torch.empty_like(q), torch.empty_like(q)
        cu = torch.tensor([0, new], device=CUDA, dtype=torch.int32)
        before = torch.tensor([context - new], device=CUDA, dtype=torch.int32)
        if overlapping:
            picked = script.overlapping_blocks(new, context)
            ids = picked.transpose(0, 1).contiguous()
        else:
            ids = random_blocks(new, context)
            picked = ids.transpose(0, 1).contiguous()
        ours = call("sparse_attention", (out, q, k, v, ids, table, cu, lens), new, SCALE)

        def peer(
            q=q,
            cache=cache,
            picked=picked,
            table=table,
            cu=cu,
            lens=lens,
            before=before,
            out=peer_out,
            new=new,
        ):
            attend = sparse_attn.minimax_m3_sparse_attn
            return attend(q, cache, picked, table, cu, lens, before, new, KV_HEADS, SCALE, out)

        name = f"sparse prefill {new} @ {context}{' overlapping' * overlapping}"
        compare(name, ours, peer, False)
        codes, scale = (k.to(FP8), v.to(FP8)), torch.ones(KV_HEADS, device=CUDA)
        ours = call("sparse_attention", (out, q, *codes, ids, table, cu, lens), new, SCALE, scale, scale)
        compare(f"{name}, fp8 pages", ours, None, False)


def dense_decode() -> None:
    """Every case reads more than the L2 holds."""
    for batch, context, heads, kv_heads in [(32, 32768, 48, 8), (1, 131072, 64, 4), (8, 32768, 64, 4)]:
        pages, table, _, lens = script.paged(batch, context)
        k, v = (randn(batch * pages, kv_heads, PAGE, DIM) for _ in range(2))
        q = randn(batch, heads, DIM)
        for name in ("", ", fp8 pages"):
            if name:
                k, v = k.to(FP8), v.to(FP8)
            tensors = (torch.empty_like(q), q, k, v, table, one_each(batch), lens)
            run = call("paged_attention", tensors, 1, SCALE)
            compare(f"dense decode {batch} x {context}, {heads}/{kv_heads} heads{name}", run, None, True)


DENSE_PREFILLS = [
    (8192, 8192, 64, 4),
    (8192, 8192, 48, 8),
    (2048, 2048, 64, 4),
    (2048, 32768, 64, 4),
    (2048, 32768, 48, 8),
    (8192, 32768, 48, 8),
    (2048, 131072, 48, 8),
]


def dense_prefill() -> None:
    """The peer is cuDNN on contiguous K and V; it offers no causal chunk behind a context."""
    for new, context, heads, kv_heads in DENSE_PREFILLS:
        pages, table, _, lens = script.paged(1, context)
        k, v = (randn(pages, kv_heads, PAGE, DIM) for _ in range(2))
        q = randn(new, heads, DIM)
        cu = torch.tensor([0, new], device=CUDA, dtype=torch.int32)
        ours = call("paged_attention", (torch.empty_like(q), q, k, v, table, cu, lens), new, SCALE)
        rows, keys, values = (
            q.transpose(0, 1)[None],
            randn(1, kv_heads, context, DIM),
            randn(1, kv_heads, context, DIM),
        )

        def peer(q=rows, k=keys, v=values):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        flops = 4 * heads * DIM * new * (context - (new - 1) / 2)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            case = f"dense prefill {new} @ {context}, {heads}/{kv_heads} heads"
            compare(case, ours, peer if new == context else None, False, flops)


SECTIONS = [selector_decode, sparse_decode, selector_prefill, sparse_prefill, dense_decode, dense_prefill]

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    script = load_script(sys.argv[1])
    index_topk, sparse_attn = script.load_vllm_ops(Path(sys.argv[2]).resolve())
    torch.manual_seed(0)
    for section in SECTIONS:
        if not sys.argv[3:] or section.__name__ in sys.argv[3:]:
            section()
