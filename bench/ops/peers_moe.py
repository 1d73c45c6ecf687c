"""Times the bf16 grouped GEMMs of the experts, router and plan beside other engines' kernels, in one process,
by the same timer and with the same routing.

usage: peers_moe.py RUN_PY PEERS_DIR [section ...] [tokens ...]

Sections: triton deepgemm plain skew router; all by default, at the token counts of RUN_PY. RUN_PY is a
script that offers ``med`` (timer), ``routing`` (random expert ids), ``MOE`` (shapes), ``moe_triton`` and
``deepgemm`` (time the peers' kernels from PEERS_DIR) and reports through its function ``report``. Prints a
line per case: ours (activation included), the time in which memory or tensor cores could have done it, the
peer's (without activation).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peers_attention import CUDA, call, load_script

import mmx.ops as ops
from mmx.ops import Activation

BF16 = torch.bfloat16


class Layer:
    """Both grouped GEMMs of the routed experts of an M3 layer, on weights of its own."""

    def __init__(self) -> None:
        self.num_experts, self.topk, self.hidden, self.inter = script.MOE["m3"]
        self.gate_up = self.weight(2 * self.inter, self.hidden)
        self.down = self.weight(self.hidden, self.inter)

    def weight(self, n: int, k: int) -> torch.Tensor:
        return torch.randn(self.num_experts, n, k, device=CUDA, dtype=BF16) * 0.02

    def time(self, ids: torch.Tensor, plain: bool = False) -> float:
        """With ``plain`` gate and up are one product of rows in plan order, as the peers do it: without the
        activation, and without finding the rows."""
        num_tokens = ids.shape[0]
        x = torch.randn(ids.numel() if plain else num_tokens, self.hidden, device=CUDA, dtype=BF16)
        offsets, rows, _ = ops.moe_plan(ids.int(), 0, self.num_experts)
        act = torch.empty(ids.numel(), self.inter, device=CUDA, dtype=BF16)
        out = torch.empty(ids.numel(), self.hidden, device=CUDA, dtype=BF16)
        activation = (int(Activation.SWIGLU_OAI), 1.702, 7.0)
        if plain:
            act.normal_()
            wide = torch.empty(ids.numel(), 2 * self.inter, device=CUDA, dtype=BF16)
            gate_up = call("moe_down", (wide, x, self.gate_up, None, offsets))
        else:
            gate_up = call("moe_gate_up", (act, x, self.gate_up, None, offsets, rows), *activation)
        down = call("moe_down", (out, act, self.down, None, offsets))

        def both() -> None:
            gate_up()
            down()

        both()
        torch.cuda.synchronize()  # Why: the timer uses its own stream, which does not wait for the inputs.
        return script.med(both, num_tokens <= 128)

    def floor(self, ids: torch.Tensor) -> float:
        return script.moe_floor(ids, self.hidden, self.inter, 2, script.TF_BF16)


def show(case: str, ours: float, floor: float, peer: float | None = None) -> None:
    line = f"{case:36s} {ours:9.2f} us   floor {floor:8.1f} ({floor / ours:.2f})"
    print(line + (f"   peer {peer:9.2f} us   {peer / ours:.2f}x" if peer else ""), flush=True)


def beside(peer: str, run_peers: Callable[[], None]) -> None:
    """Ours after each report of ``run_peers`` whose case holds ``peer``, with the same routing."""
    layer = Layer()
    drawn: list[torch.Tensor] = []
    draw, tell = script.routing, script.report

    def routing(*sizes: int) -> torch.Tensor:
        drawn.append(draw(*sizes))
        return drawn[-1]

    def report(case: str, us: float, floor_us: float | None = None, **_: object) -> None:
        if peer in case:
            show(case, layer.time(drawn[-1]), layer.floor(drawn[-1]), us)

    script.routing, script.report = routing, report
    try:
        run_peers()
    finally:
        script.routing, script.report = draw, tell


def triton() -> None:
    beside("m3_triton", lambda: script.moe_triton(peers, "m3", False))


def deepgemm() -> None:
    beside("m3_deepgemm_bf16", lambda: script.deepgemm(peers))


def plain() -> None:
    """Ours without the activation, beside ours with it."""
    layer = Layer()
    for num_tokens in script.MOE_TOKENS:
        ids = script.routing(num_tokens, layer.num_experts, layer.topk)
        show(f"with activation, tokens {num_tokens}", layer.time(ids), layer.floor(ids))
        show(f"without, tokens {num_tokens}", layer.time(ids, plain=True), layer.floor(ids))


def skew() -> None:
    """One expert that every token chooses, 16 that none does; and the same number of tokens spread evenly."""
    layer = Layer()
    for num_tokens in script.MOE_TOKENS:
        even = script.routing(num_tokens, layer.num_experts, layer.topk)
        even_us = layer.time(even)
        show(f"even, tokens {num_tokens}", even_us, layer.floor(even))
        skewed = 16 + script.routing(num_tokens, layer.num_experts - 17, layer.topk)
        skewed[:, 0] = layer.num_experts - 1
        us = layer.time(skewed)
        show(f"skewed, tokens {num_tokens}", us, layer.floor(skewed))
        print(f"    skewed / even {us / even_us:.2f}", flush=True)


def router() -> None:
    """Router and plan of M3."""
    num_experts, topk, hidden, _ = script.MOE["m3"]
    gate_weight = torch.randn(num_experts, hidden, device=CUDA) * 0.02
    bias = torch.randn(num_experts, device=CUDA)
    for num_tokens in (1, 8, 64, 512, 2048, 8192, 65536):
        x = torch.randn(num_tokens, hidden, device=CUDA, dtype=BF16)
        ids = torch.empty(num_tokens, topk, device=CUDA, dtype=torch.int32)
        weights = torch.empty(num_tokens, topk, device=CUDA)
        rows, positions = (torch.empty(ids.numel(), device=CUDA, dtype=torch.int32) for _ in range(2))
        offsets = torch.empty(num_experts + 1, device=CUDA, dtype=torch.int32)
        runs = {
            "router": call("moe_router", (ids, weights, x, gate_weight, bias), 1.0),
            "plan": call("moe_plan", (offsets, rows, positions, ids), 0),
        }
        for op, run in runs.items():
            run()
            torch.cuda.synchronize()
            us = script.med(run, True)
            flops = 2 * num_tokens * hidden * num_experts
            rate = f"   {flops / us / 1e6:6.1f} TFLOP/s of fp32" if op == "router" else ""
            print(f"{op} m3 tokens {num_tokens:6d} {us:9.2f} us{rate}", flush=True)


SECTIONS = [triton, deepgemm, plain, skew, router]

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    script = load_script(sys.argv[1])
    peers = Path(sys.argv[2]).resolve()
    wanted = [word for word in sys.argv[3:] if not word.isdigit()]
    script.MOE_TOKENS = [int(word) for word in sys.argv[3:] if word.isdigit()] or script.MOE_TOKENS
    torch.manual_seed(0)
    for section in SECTIONS:
        if not wanted or section.__name__ in wanted:
            section()
