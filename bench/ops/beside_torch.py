"""Times what the C++ bench times a second time, through ``torch.ops`` by the peers' timer, and compares.

usage: beside_torch.py RUN_PY MMX_BENCH [op ...]

RUN_PY is a script that offers ``med`` (timer), ``paged`` and ``overlapping_blocks``. Every large case of the
selector, attention, router and expert ops (tests/cases) is timed as README's tables are: up to 128 tokens by
graphs of repeated calls, more tokens one call at a time with nothing in the L2, for which the bench runs with
--cold, both after a rest, since a chip at its power limit slows down while it is busy. A call of few
microseconds depends by more than 5 % on the numbers drawn and on where the small tensors lie: a case that
differs by more is timed eight times more by both in turn, each time with other numbers in other places, and
medians of nine are compared. Prints a line per case; exits with 1 if one still differs by more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers_attention import CUDA, FP8, call, load_script, one_each, randn, random_blocks

import mmx.ops as ops
from mmx.ops import Activation

CASES = Path(__file__).resolve().parents[2] / "tests/cases"
MAX_GRAPH_TOKENS, MAX_DIFFERENCE, DRAWS = 128, 0.05, 9
REST_S = 0.3  # before a prompt is timed; the bench rests as long
Dims = dict[str, int]
Run = Callable[[], object]
Line = dict[str, Any]  # what mmx_bench --json says of a case


def codes(*shape: int, deviation: float = 1.0) -> torch.Tensor:
    return (randn(*shape) * deviation).to(FP8)


def scales(*shape: int) -> torch.Tensor:
    return 0.01 + 1e-4 * torch.randint(64, shape, device=CUDA)


def random_experts(c: Dims) -> torch.Tensor:
    """The routing of bench/common/routing.h, number for number: how many experts are hit decides the time."""
    experts, ids, state = list(range(c["num_experts"])), [], 1
    for _ in range(c["num_tokens"]):
        for k in range(c["topk"]):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            other = k + (state >> 33) % (len(experts) - k)
            experts[k], experts[other] = experts[other], experts[k]
            ids.append(experts[k])
    return torch.tensor(ids, dtype=torch.int32, device=CUDA).view(c["num_tokens"], c["topk"])


def paged_batch(c: Dims) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """block_table, cu_seqlens_q, seq_lens."""
    _, table, _, lens = script.paged(c["num_seqs"], c["seq_len"])
    return table, one_each(c["num_seqs"]) * c["q_len"], lens


def pages(c: Dims, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return randn(c["num_seqs"] * (c["seq_len"] // c["block_size"]), *shape).to(dtype)


def select_blocks(c: Dims, dtype: torch.dtype) -> Run:
    q = randn(c["num_seqs"] * c["q_len"], c["num_index_heads"], c["index_dim"])
    ids = torch.empty(*q.shape[:2], c["topk"], dtype=torch.int32, device=CUDA)
    k = pages(c, dtype, c["block_size"], c["index_dim"])
    tail = c["q_len"], c["init_blocks"], c["local_blocks"]
    return call("select_blocks", (ids, q, k, *paged_batch(c)), *tail)


def attention(c: Dims, dtype: torch.dtype) -> Run:
    """Dense, or sparse if the case says how many blocks are chosen."""
    q = randn(c["num_seqs"] * c["q_len"], c["num_heads"], c["head_dim"])
    k, v = (pages(c, dtype, c["num_kv_heads"], c["block_size"], c["head_dim"]) for _ in range(2))
    ids: list[torch.Tensor] = []
    if "shared" in c:
        ids = [script.overlapping_blocks(c["q_len"], c["seq_len"]).transpose(0, 1).contiguous()]
    elif "topk" in c:
        ids = [random_blocks(c["q_len"], c["seq_len"]).repeat(c["num_seqs"], 1, 1)]
    name = "sparse_attention" if ids else "paged_attention"
    scale = [torch.ones(c["num_kv_heads"], device=CUDA)] * 2 if dtype == FP8 else []
    tensors = (torch.empty_like(q), q, k, v, *ids, *paged_batch(c))
    return call(name, tensors, c["q_len"], c["head_dim"] ** -0.5, *scale)


def moe_router(c: Dims, dtype: torch.dtype) -> Run:
    x, weight = randn(c["num_tokens"], c["hidden"]), randn(c["num_experts"], c["hidden"]).float() * 0.02
    ids = torch.empty(c["num_tokens"], c["topk"], dtype=torch.int32, device=CUDA)
    bias = torch.randn(c["num_experts"], device=CUDA)
    return call("moe_router", (ids, ids.float(), x, weight, bias), 2.0)


def plan_of(c: Dims) -> tuple[torch.Tensor, torch.Tensor]:
    offsets, rows, _ = ops.moe_plan(random_experts(c), c["first_expert"], c["num_local_experts"])
    return offsets, rows


def moe_gate_up(c: Dims, dtype: torch.dtype) -> Run:
    hidden, inter, num_rows = c["hidden"], c["inter"], c["num_tokens"] * c["topk"]
    weight = randn(c["num_local_experts"], 2 * inter, hidden) * 0.02
    out, x = torch.empty(num_rows, inter, dtype=dtype, device=CUDA), randn(c["num_tokens"], hidden)
    activation = int(Activation.SWIGLU_OAI), 1.702, 7.0
    return call("moe_gate_up", (out, x, weight, None, *plan_of(c)), *activation)


def moe_down(c: Dims, dtype: torch.dtype) -> Run:
    hidden, inter, num_rows = c["hidden"], c["inter"], c["num_tokens"] * c["topk"]
    weight = randn(c["num_local_experts"], hidden, inter) * 0.02
    out = torch.empty(num_rows, hidden, dtype=dtype, device=CUDA)
    return call("moe_down", (out, randn(num_rows, inter), weight, None, plan_of(c)[0]))


def expert_codes(c: Dims, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    experts = c["num_local_experts"]
    weight = torch.stack([codes(n, k, deviation=0.02) for _ in range(experts)])
    return weight, scales(experts, n // 128, k // 128)


def fp8_moe_gate_up(c: Dims, dtype: torch.dtype) -> Run:
    hidden, inter, num_rows = c["hidden"], c["inter"], c["num_tokens"] * c["topk"]
    out = torch.empty(num_rows, inter, dtype=FP8, device=CUDA)
    x, x_scale = codes(c["num_tokens"], hidden), scales(c["num_tokens"], hidden // 128)
    tensors = (out, scales(num_rows, inter // 128), x, x_scale, *expert_codes(c, 2 * inter, hidden))
    return call("fp8_moe_gate_up", (*tensors, *plan_of(c)), int(Activation.SILU), 0.0, 0.0)


def fp8_moe_down(c: Dims, dtype: torch.dtype) -> Run:
    hidden, inter, num_rows = c["hidden"], c["inter"], c["num_tokens"] * c["topk"]
    out, x, x_scale = randn(num_rows, hidden), codes(num_rows, inter), scales(num_rows, inter // 128)
    tensors = (out, x, x_scale, *expert_codes(c, hidden, inter), plan_of(c)[0])
    return lambda: torch.ops.mmx.fp8_moe_down(*tensors)


def fp8_linear(c: Dims, dtype: torch.dtype) -> Run:
    m, n, k = c["m"], c["n"], c["k"]
    weight = codes(n, k, deviation=0.02), scales(n // 128, k // 128)
    tensors = (randn(m, n), codes(m, k), scales(m, k // 128), *weight)
    return lambda: torch.ops.mmx.fp8_linear(*tensors)


RUNS: dict[str, Callable[[Dims, torch.dtype], Run]] = {
    "select_blocks": select_blocks,
    "sparse_attention": attention,
    "paged_attention": attention,
    "moe_router": moe_router,
    "moe_gate_up": moe_gate_up,
    "moe_down": moe_down,
    "fp8_moe_gate_up": fp8_moe_gate_up,
    "fp8_moe_down": fp8_moe_down,
    "fp8_linear": fp8_linear,
}


def num_tokens(c: Dims) -> int:
    return c.get("num_tokens") or c.get("m") or c["num_seqs"] * c["q_len"]


def bench_lines(op: str, cold: bool, only: dict[str, tuple[int, ...]], seed: int = 0) -> Iterator[Line]:
    """What mmx_bench says of the cases with these sizes."""
    command = [program, "--backend", "cuda", "--large", "--json", "--op", op, "--cases", str(CASES)]
    command += ["--seed", str(seed), *["--cold"] * cold]
    command += [word for dim, sizes in only.items() for size in sizes for word in ("--case", f"{dim}={size}")]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return map(json.loads, out.splitlines())


def sizes_timed(cold: bool) -> dict[str, tuple[int, ...]]:
    sizes = {"q_len": (1, 2048, 8192), "num_tokens": (1, 8, 32, 64, 128, 512, 2048, 8192)}
    most = {"q_len": 1, "num_tokens": MAX_GRAPH_TOKENS}
    return {dim: tuple(v for v in values if (v > most[dim]) == cold) for dim, values in sizes.items()}


def dims_of(line: Line) -> Dims:
    rates = "gbs", "tflops"
    return {name: value for name, value in line.items() if type(value) is int and name not in rates}


def through_torch(op: str, line: Line, cold: bool, seed: int) -> float:
    torch.manual_seed(seed)
    _place = torch.empty(512 * int(torch.randint(1, 2048, ())), dtype=torch.int8, device=CUDA)
    run = RUNS[op](dims_of(line), FP8 if line["dtype"] == "float8_e4m3fn" else torch.bfloat16)
    run()
    torch.cuda.synchronize()  # Why: the timer uses its own stream, which does not wait for the inputs.
    time.sleep(REST_S * cold)
    return script.med(run, not cold, rep=60 if cold else 10)


def again(op: str, line: Line, cold: bool, seed: int) -> float:
    """What the bench says of this very case with other numbers in other places."""
    dims = dims_of(line)
    lines = bench_lines(op, cold, {dim: (size,) for dim, size in dims.items()}, seed)
    (same,) = (other for other in lines if other["dtype"] == line["dtype"] and dims_of(other) == dims)
    return float(same["us"])


def compare(op: str, line: Line, cold: bool) -> bool:
    dims = dims_of(line)
    if (num_tokens(dims) > MAX_GRAPH_TOKENS) != cold:
        return True
    bench, ours = [line["us"]], [through_torch(op, line, cold, 0)]
    if abs(bench[0] / ours[0] - 1) > MAX_DIFFERENCE:
        for seed in range(1, DRAWS):
            bench.append(again(op, line, cold, seed))
            ours.append(through_torch(op, line, cold, seed))
    ratio = median(bench) / median(ours)
    agree = abs(ratio - 1) <= MAX_DIFFERENCE
    sizes = " ".join(f"{name}={value}" for name, value in dims.items())
    print(f"{op:17s} {line['dtype']:14s} {median(bench):9.2f} {median(ours):9.2f} us {ratio:6.3f}", end=" ")
    print(f"{'' if agree else '! '}{'cold' if cold else 'warm'} {sizes}", end="")
    print(f" of {bench} and {[round(us, 2) for us in ours]}" if len(bench) > 1 else "", flush=True)
    return agree


def main() -> int:
    differ = 0
    for op in sys.argv[3:] or RUNS:
        for cold in (False, True):
            differ += sum(not compare(op, line, cold) for line in bench_lines(op, cold, sizes_timed(cold)))
            torch.cuda.empty_cache()
    print(f"{differ} differ by more than {100 * MAX_DIFFERENCE:.0f} %")
    return differ > 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    script, program = load_script(sys.argv[1]), sys.argv[2]
    sys.exit(main())
