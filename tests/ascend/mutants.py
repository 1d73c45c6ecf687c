"""How many deliberate faults in the AscendC kernels the emulator and the results give away.

A mutant is one call that is ignored (SetFlag, WaitFlag, PipeBarrier, a cross-core flag, SyncAll), one flag
whose Sets and Waits are both ignored, or one stride that is one unit longer. It is switched on by its name at
run time.
Caught: a check of the emulator does not hold, or the result of a small case is wrong.

    python tests/ascend/mutants.py              # all of them, survivors listed
    python tests/ascend/mutants.py --sample 30  # a fixed sample
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))  # unless mmx is installed

import torch

from ascend import test_attention, test_moe, test_norm, test_qkv, test_quant, test_selector
from ascend.emulated import Chip, Emulator, ViolationError, library_path
from mmx.ops import Activation
from ops import test_qkv as qkv_cases
from ops import test_selector as selector_cases
from ops.compare import ATOL, strided
from ops.paged import make_batch
from ops.test_attention import make as make_attention
from ops.test_attention import random_blocks

BF16 = torch.bfloat16
CPU = torch.device("cpu")
RUNS = ((0, Chip(num_aic=2)), (3, Chip(num_aic=3)))


@dataclass
class Case:
    """A small launch that is fast and right; ``make`` gives fresh Params and the outputs."""

    op: str
    params: str
    make: Callable[[], tuple[dict[str, Any], list[torch.Tensor]]]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed)).to(BF16)


def norm_cases() -> Iterator[Case]:
    # More tiles than one per core, in every form of the row loops; odd widths; strided rows.
    for seed, (tokens, heads, hidden) in enumerate(
        [(60, 1, 3000), (300, 3, 128), (70, 5, 100), (600, 1, 192)]
    ):

        def make(tokens=tokens, heads=heads, hidden=hidden, seed=seed):
            x, weight = randn(seed, tokens, heads, hidden), randn(seed + 9, hidden)
            out = strided(torch.zeros(x.shape, dtype=BF16))
            values = test_norm.rms_norm_values(out, strided(x), weight, seed % 2 == 0)
            return values, [out]

        yield Case("rms_norm", "RmsNormParams", make)

    def add_make():
        x, residual = randn(1, 40, 1900), strided(randn(2, 40, 1900))
        out = torch.zeros_like(x)
        values = test_norm.rms_norm_values(out[:, None], x[:, None], randn(3, 1900).float(), True)
        for name in ("num_heads", "out_token_stride", "out_head_stride", "x_token_stride", "x_head_stride"):
            del values[name]
        values |= {
            "residual": residual,
            "out_stride": 1900,
            "x_stride": 1900,
            "residual_stride": residual.stride(0),
        }
        return values, [out, residual]

    yield Case("add_rms_norm", "AddRmsNormParams", add_make)


def quant_cases() -> Iterator[Case]:
    def fp8(rows=90, cols=1100):
        codes = strided(test_quant.finite_codes(rng(5), rows, cols).view(torch.int8)).view(
            torch.float8_e4m3fn
        )
        scale = torch.rand(-(-rows // 128), -(-cols // 128), generator=rng(6)) + 0.1
        out = strided(torch.zeros(rows, cols, dtype=BF16))
        values = {"out": out, "x": codes, "scale": scale, "rows": rows, "cols": cols, "dtype": BF16}
        strides = {"out_stride": out.stride(0), "x_stride": codes.stride(0), "scale_stride": scale.stride(0)}
        return values | strides, [out]

    yield Case("fp8_block_dequant", "Fp8BlockDequantParams", fp8)
    for shape in ((700, 300), (60, 4000)):

        def dynamic(shape=shape):
            x = strided(randn(7, *shape))
            out, scale = torch.zeros(shape, dtype=torch.int8), torch.zeros(shape[0])
            values = {"out": out, "scale": scale, "x": x, "rows": shape[0], "cols": shape[1], "dtype": BF16}
            return values | {"x_stride": x.stride(0)}, [out, scale]

        yield Case("dynamic_quant", "DynamicQuantParams", dynamic)

    def linear(m=150, n=700, k=700):
        x, weight = (torch.randint(-127, 128, (r, k), generator=rng(r), dtype=torch.int8) for r in (m, n))
        out = strided(torch.zeros(m, n, dtype=BF16))
        values = {"out": out, "x": x, "weight": weight, "m": m, "n": n, "k": k, "dtype": BF16}
        scales = {
            "x_scale": torch.rand(m, generator=rng(1)),
            "weight_scale": torch.rand(n, generator=rng(2)) / 1000,
        }
        return values | scales | {"out_stride": out.stride(0)}, [out]

    yield Case("w8a8_linear", "W8A8LinearParams", linear)


def qkv_cases_small() -> Iterator[Case]:
    for dims in (
        {"num_heads": 8, "num_kv_heads": 2, "num_index_heads": 2, "whole": 0},
        {"num_heads": 12, "num_kv_heads": 2, "num_index_heads": 0, "whole": 1},
    ):
        dims = {**dims, "num_tokens": 13, "head_dim": 128, "rotary_dim": 64, "block_size": 16}

        def make(dims=dims):
            args = qkv_cases.make(dims, BF16, True, CPU, rng(8)).args
            return test_qkv.values(args, dims, True), [a for a in args[:4] if a is not None]

        yield Case("norm_rope_store", "NormRopeStoreParams", make)
        if dims["whole"]:

            def make_given(make=make):
                values, outs = make()
                return values | {"mean_squares": torch.rand(13, 2, generator=rng(9)) + 0.5}, outs

            yield Case("norm_rope_store", "NormRopeStoreParams", make_given)


def moe_cases() -> Iterator[Case]:
    dims = {"num_tokens": 150, "topk": 2, "num_experts": 3, "first_expert": 0, "num_local_experts": 3}
    offsets, rows, _ = test_moe.plan(dims, rng(3))
    for hidden, inter in ((600, 300), (100, 40)):

        def gate_up(hidden=hidden, inter=inter):
            x, weight = strided(randn(1, 150, hidden)), randn(2, 3, 2 * inter, hidden) * hidden**-0.5
            out = torch.zeros(300, inter, dtype=BF16)
            activation = Activation.SWIGLU_OAI if hidden == 600 else Activation.SILU
            return test_moe.gate_up_values(out, x, weight, offsets, rows, activation), [out]

        yield Case("moe_gate_up", "MoeGateUpParams", gate_up)

    def down():
        x, weight = randn(1, 300, 600), randn(2, 3, 700, 600) * 600**-0.5
        out = torch.zeros(300, 700, dtype=BF16)
        return test_moe.down_values(out, x, weight, offsets), [out]

    yield Case("moe_down", "MoeDownParams", down)

    def combine():
        _, _, positions = test_moe.plan(dims, rng(3))
        x, shared, out = (
            randn(1, 300, 7000),
            strided(randn(2, 150, 7000)),
            strided(torch.zeros(150, 7000, dtype=BF16)),
        )
        return test_moe.combine_values(out, x, positions, torch.rand(150, 2, generator=rng(4)), shared), [out]

    yield Case("moe_combine", "MoeCombineParams", combine)


def attention_cases() -> Iterator[Case]:
    shapes = [
        # heads, kv_heads, head_dim, block_size, (q_len, seq_len) of each sequence
        (12, 2, 128, 128, [(40, 1200), (1, 1500), (25, 25)] * 3),
        (6, 1, 64, 64, [(3, 1300)]),
        (4, 2, 96, 16, [(30, 70), (1, 530)] * 7),
    ]
    for seed, (heads, kv_heads, head_dim, block_size, lens) in enumerate(shapes):
        for sparse in (False, True):

            def make(
                seed=seed, heads=heads, kv=kv_heads, dim=head_dim, block=block_size, lens=lens, sparse=sparse
            ):
                batch = make_batch(lens, block, rng(seed))
                dims = {"num_heads": heads, "num_kv_heads": kv, "head_dim": dim}
                q, k, v = make_attention(batch, dims, BF16, CPU, rng(seed))
                out = strided(torch.zeros(q.shape, dtype=BF16))
                base = test_attention.base_values(out, q, k, v, batch, dim**-0.5)
                if not sparse:
                    return base, [out]
                ids = random_blocks(batch, kv, 7, rng(seed))
                return {"base": base, "block_ids": ids, "topk": 7}, [out]

            yield Case(
                *(
                    ("sparse_attention", "SparseAttentionParams")
                    if sparse
                    else ("paged_attention", "PagedAttentionParams")
                ),
                make,
            )


def selector_cases_small() -> Iterator[Case]:
    shapes = [
        (4, 128, 128, [(40, 3900), (1, 2500)] * 2, (3, 1, 2)),
        (3, 64, 64, [(50, 1700), (7, 300)] * 2, (16, 0, 1)),
        (1, 16, 64, [(2, 64 * 2100)], (16, 0, 1)),
    ]
    for seed, (heads, dim, block, lens, numbers) in enumerate(shapes):

        def make(seed=seed, heads=heads, dim=dim, block=block, lens=lens, numbers=numbers):
            batch = make_batch(lens, block, rng(seed))
            q, k = selector_cases.make(batch, heads, dim, BF16, True, rng(seed))
            ids = torch.full((*q.shape[:2], numbers[0]), -7, dtype=torch.int32)
            return test_selector.values(ids, q, k, batch, *numbers), [ids]

        yield Case("select_blocks", "SelectBlocksParams", make)


def all_cases() -> list[Case]:
    makers = (norm_cases, quant_cases, qkv_cases_small, moe_cases, attention_cases, selector_cases_small)
    return [case for maker in makers for case in maker()]


def wrong(outputs: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Whether a test of these outputs would fail: integers exactly, numbers beyond the budget of a test."""
    for ours, truth in zip(outputs, right, strict=True):
        if not truth.is_floating_point():
            if not torch.equal(ours, truth):
                return True
            continue
        known = ~truth.isnan()
        if ours[known].isnan().any() or not ours[~known].isnan().all():
            return True
        error = (ours[known].double() - truth[known].double()).abs()
        limit = ATOL.get(ours.dtype, 2e-6) * max(1.0, truth[known].double().abs().max().item())
        if error.numel() and error.max() > limit:
            return True
    return False


@dataclass
class Score:
    caught: Counter[str]
    survivors: list[str]

    @property
    def total(self) -> int:
        return sum(self.caught.values()) + len(self.survivors)

    @property
    def share(self) -> float:
        return sum(self.caught.values()) / max(1, self.total)


def collect(emulator: Emulator, cases: list[Case]) -> dict[str, list[tuple[Case, list[torch.Tensor]]]]:
    """Mutants by name, each with the cases that reach it and their right results."""
    found: dict[str, list[tuple[Case, list[torch.Tensor]]]] = {}
    for case in cases:
        values, outputs = case.make()
        report = emulator.run(case.op, case.params, values, chip=RUNS[0][1])
        for site in report["sites"]:
            found.setdefault(site, []).append((case, outputs))
    return found


def score(emulator: Emulator, sample: int = 0, progress: Callable[[str], None] = lambda line: None) -> Score:
    mutants = collect(emulator, all_cases())
    names = sorted(mutants)
    if sample:
        names = random.Random(0).sample(names, sample)
    result = Score(Counter(), [])
    for name in names:
        how = next(filter(None, (fate(emulator, name, case, right) for case, right in mutants[name])), "")
        if how:
            result.caught[how] += 1
        else:
            result.survivors.append(name)
            progress(f"survived: {name}")
    return result


def fate(emulator: Emulator, name: str, case: Case, right: list[torch.Tensor]) -> str:
    for schedule, chip in RUNS:
        values, outputs = case.make()
        try:
            emulator.run(case.op, case.params, values, chip=chip, schedule=schedule, mutant=name)
        except ViolationError as error:
            return str(error).split(": ")[1].split(" at ")[0]
        if wrong(outputs, right):
            return "wrong result"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="mutation score of the AscendC kernels on the emulator")
    parser.add_argument("--sample", type=int, default=0, help="a fixed random sample of so many; 0: all")
    args = parser.parse_args()
    result = score(Emulator(library_path()), args.sample, print)
    print(f"{result.total - len(result.survivors)} of {result.total} mutants caught ({result.share:.1%})")
    for how, count in result.caught.most_common():
        print(f"  {count:5} {how}")
    return 0 if result.share >= 0.95 else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
