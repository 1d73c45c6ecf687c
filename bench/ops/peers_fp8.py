"""Times products of e4m3 rows and weights beside other engines' kernels, in one process, by the same timer
and with the same routing.

usage: peers_fp8.py RUN_PY PEERS_DIR [section ...]

Sections: triton deepgemm plain skew dense small streams; all by default. RUN_PY is a script that offers
``med`` (timer), ``routing`` (random expert ids), ``MOE`` (shapes), ``moe_triton`` and ``deepgemm`` (time the
peers' kernels from PEERS_DIR) and reports through its function ``report``. Prints a line per case: ours
(experts: activation and quantisation of its result included, of the input not, as in the peers), the time in
which memory or tensor cores could have done it, and the peer's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peers_attention import CUDA, call, load_script

import mmx.ops as ops
from mmx.ops import Activation

BF16, E4M3, F32 = torch.bfloat16, torch.float8_e4m3fn, torch.float32


def codes(*shape: int, deviation: float = 1.0) -> torch.Tensor:
    """Normal numbers as the peers' script draws them, rows with deviation 1, weights 0.02: what the bits are
    decides how much power a product takes, and with it the clock."""
    return (torch.randn(shape, device=CUDA, dtype=BF16) * deviation).to(E4M3)


def weights(*shape: int) -> torch.Tensor:
    return codes(*shape, deviation=0.02)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, device=CUDA)


def timed(run: Callable[[], object], graph: bool) -> float:
    run()
    torch.cuda.synchronize()  # Why: the timer uses its own stream, which does not wait for the inputs.
    return script.med(run, graph, rep=40)


def show(case: str, ours: float, floor: float, peer: float | None = None) -> None:
    line = f"{case:40s} {ours:9.2f} us   floor {floor:8.2f} ({floor / ours:.2f})"
    print(line + (f"   peer {peer:9.2f} us   {peer / ours:.2f}x" if peer else ""), flush=True)


class Layer:
    """Both grouped GEMMs of M2.5's routed experts, on weights of its own."""

    def __init__(self) -> None:
        self.num_experts, self.topk, self.hidden, self.inter = script.MOE["m25"]
        self.gate_up = self.weight(2 * self.inter, self.hidden)
        self.down = self.weight(self.hidden, self.inter)

    def weight(self, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [weights(n, k) for _ in range(self.num_experts)]
        return torch.stack(parts), scales(self.num_experts, n // 128, k // 128)

    def time(self, ids: torch.Tensor, plain: bool = False) -> float:
        """With ``plain`` gate and up are one product of rows in plan order, as the peers do it: without the
        activation, quantisation of its result, and finding the rows."""
        num_tokens, num_rows = ids.shape[0], ids.numel()
        offsets, rows, _ = ops.moe_plan(ids.int(), 0, self.num_experts)
        num_inputs = num_rows if plain else num_tokens
        x, x_scale = codes(num_inputs, self.hidden), scales(num_inputs, self.hidden // 128)
        h = torch.empty(num_rows, self.inter, device=CUDA, dtype=E4M3)
        h_scale = torch.empty(num_rows, self.inter // 128, device=CUDA)
        out = torch.empty(num_rows, self.hidden, device=CUDA, dtype=BF16)
        if plain:
            h, h_scale = codes(num_rows, self.inter), scales(num_rows, self.inter // 128)
            wide = torch.empty(num_rows, 2 * self.inter, device=CUDA, dtype=BF16)
            gate_up = partial(torch.ops.mmx.fp8_moe_down, wide, x, x_scale, *self.gate_up, offsets)
        else:
            tensors = (h, h_scale, x, x_scale, *self.gate_up, offsets, rows)
            gate_up = call("fp8_moe_gate_up", tensors, int(Activation.SILU), 0.0, 0.0)

        def both() -> None:
            gate_up()
            torch.ops.mmx.fp8_moe_down(out, h, h_scale, *self.down, offsets)

        return timed(both, num_tokens <= 128)

    def floor(self, ids: torch.Tensor) -> float:
        return script.moe_floor(ids, self.hidden, self.inter, 1, script.TF_FP8)


def beside(key: str, run_peers: Callable[[], None]) -> None:
    """Ours after each report of ``run_peers`` whose case holds ``key``, with the same routing."""
    layer = Layer()
    drawn: list[torch.Tensor] = []
    draw, tell, time = script.routing, script.report, script.med

    def routing(*sizes: int) -> torch.Tensor:
        drawn.append(draw(*sizes))
        return drawn[-1]

    def report(case: str, us: float, floor_us: float | None = None, **_: object) -> None:
        if key in case:
            show(case, layer.time(drawn[-1]), layer.floor(drawn[-1]), us)

    script.routing, script.report = routing, report
    script.med = lambda run, graph=False, rep=40: time(run, graph, 40)
    try:
        run_peers()
    finally:
        script.routing, script.report, script.med = draw, tell, time


def triton() -> None:
    beside("m25_triton", lambda: script.moe_triton(peers, "m25", True))


def deepgemm() -> None:
    shapes = script.MOE
    script.MOE = {"m25": shapes["m25"]}
    beside("m25_deepgemm_fp8", lambda: script.deepgemm(peers))
    script.MOE = shapes


def plain() -> None:
    """Ours without activation and quantisation, beside ours with them."""
    layer = Layer()
    for num_tokens in script.MOE_TOKENS:
        ids = script.routing(num_tokens, layer.num_experts, layer.topk)
        show(f"with activation, tokens {num_tokens}", layer.time(ids), layer.floor(ids))
        show(f"without, tokens {num_tokens}", layer.time(ids, plain=True), layer.floor(ids))


def skew() -> None:
    """One expert that every token chooses, 16 that none does; and the same number of tokens spread evenly."""
    layer = Layer()
    for num_tokens in (64, 512, 2048, 8192):
        ids = script.routing(num_tokens, layer.num_experts, layer.topk)
        even = layer.time(ids)
        skewed = 16 + script.routing(num_tokens, layer.num_experts - 17, layer.topk)
        skewed[:, 0] = layer.num_experts - 1
        us = layer.time(skewed)
        show(f"skewed, tokens {num_tokens}", us, layer.floor(skewed))
        print(f"    evenly spread {even:.2f} us, skewed / even {us / even:.2f}", flush=True)


def dense() -> None:
    """Dense products of many rows beside DeepGEMM's."""
    sys.path.insert(0, str(peers))
    import deep_gemm

    for m, n, k in ((4096, 6144, 3072), (4096, 3072, 6144), (8192, 8192, 3072), (512, 8192, 3072)):
        x, weight = codes(m, k), weights(n, k)
        x_scale, weight_scale = scales(m, k // 128), scales(n // 128, k // 128)
        out, theirs = (torch.empty(m, n, device=CUDA, dtype=BF16) for _ in range(2))
        aligned = deep_gemm.get_mn_major_tma_aligned_tensor(x_scale)

        def run(out=out, x=x, x_scale=x_scale, weight=weight, weight_scale=weight_scale) -> None:
            torch.ops.mmx.fp8_linear(out, x, x_scale, weight, weight_scale)

        def peer(x=x, aligned=aligned, weight=weight, weight_scale=weight_scale, theirs=theirs) -> None:
            deep_gemm.fp8_gemm_nt((x, aligned), (weight, weight_scale), theirs)

        times = [timed(f, True) for f in (run, peer, run, peer)]
        error = (out.float() - theirs.float()).norm() / theirs.float().norm()
        show(f"{m} x {n} x {k}", min(times[::2]), 2 * m * n * k / script.TF_FP8, min(times[1::2]))
        print(f"    differs from the peer's result by {error:.1e} of its norm", flush=True)


def small() -> None:
    """Few rows through M2.5's projections, over matrices in turn: none is in the cache."""
    for n, k in ((8192, 3072), (3072, 6144)):
        matrices = [(weights(n, k), scales(n // 128, k // 128)) for _ in range(8)]
        for m in (1, 16, 64):
            x, x_scale = codes(m, k), scales(m, k // 128)
            out = torch.empty(m, n, device=CUDA, dtype=BF16)

            def run(out=out, x=x, x_scale=x_scale, matrices=matrices) -> None:
                for matrix in matrices:
                    torch.ops.mmx.fp8_linear(out, x, x_scale, *matrix)

            floor = (n * k + m * k + 2 * m * n) / script.BW
            show(f"{m} x {n} x {k}", timed(run, True) / len(matrices), floor)


def streams() -> None:
    """Dequantisation and quantisation, bound by memory."""
    weight, scale = weights(64 * 3072, 3072), scales(64 * 24, 24)
    wide = torch.empty(weight.shape, device=CUDA, dtype=BF16)
    us = timed(lambda: torch.ops.mmx.fp8_block_dequant(wide, weight, scale), False)
    show("fp8_block_dequant of 604 M", us, 3 * weight.numel() / script.BW)
    powers = torch.full((64 * 3072, 3072 // 32), 120, device=CUDA, dtype=torch.uint8)
    us = timed(lambda: torch.ops.mmx.mxfp8_dequant(wide, weight, powers), False)
    show("mxfp8_dequant of 604 M", us, 3 * weight.numel() / script.BW)
    for rows in (1, 512, 65536):
        x = wide[:rows]
        out, out_scale = weight[:rows], torch.empty(rows, 24, device=CUDA, dtype=F32)
        us = timed(lambda x=x, out=out, s=out_scale: torch.ops.mmx.fp8_quantize(out, s, x), True)
        show(f"fp8_quantize {rows} x 3072", us, 3 * x.numel() / script.BW)


SECTIONS = [triton, deepgemm, plain, skew, dense, small, streams]

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    script = load_script(sys.argv[1])
    peers = Path(sys.argv[2]).resolve()
    torch.manual_seed(0)
    for section in SECTIONS:
        if not sys.argv[3:] or section.__name__ in sys.argv[3:]:
            section()
