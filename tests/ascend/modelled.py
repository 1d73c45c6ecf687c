"""Modelled time of the AscendC kernels at the shapes of M2.5 and M3, beside the floors of the chips.

    python tests/ascend/modelled.py

Nothing here was measured. A kernel is walked through on the emulator without data: each instruction occupies
its pipe for its documented issue rate plus an assumed start-up (16 cycles, copies 32), in the order that its
flags allow, on 24 cores; a line comes from HBM once, at a cost its readers share, and else from L2. Floors:
bytes that must move over 1.6 TB/s, multiply-adds over the cube's rate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from ascend.emulated import CHIPS, Chip, Emulator, Pointer, library_path

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@dataclass
class Model:
    name: str
    hidden: int
    inter: int
    num_heads: int
    num_kv_heads: int
    num_index_heads: int
    index: bool = field(init=False)

    def __post_init__(self) -> None:
        self.index = self.num_index_heads > 0


M2 = Model("M2.5", 3072, 1536, 48, 8, 0)
M3 = Model("M3", 6144, 3072, 64, 4, 4)


@dataclass
class Launch:
    op: str
    params: str
    shape: str
    values: dict[str, Any]
    bytes: float
    flops: float = 0
    int8: bool = False


def ints(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def norms() -> Iterator[Launch]:
    rows = 2048
    for model in (M2, M3):
        n = model.hidden
        size = rows * n * 2
        common = {
            "weight": Pointer(n * 2),
            "num_tokens": rows,
            "hidden": n,
            "eps": 1e-6,
            "gemma": model is M3,
        }
        types = {"dtype": BF16, "weight_dtype": BF16}
        x = {"out": Pointer(size), "x": Pointer(size)}
        strides = {"out_stride": n, "residual_stride": n, "x_stride": n}
        values = {**common, **types, **x, **strides, "residual": Pointer(size)}
        yield Launch("add_rms_norm", "AddRmsNormParams", f"{model.name} {rows} x {n}", values, 4 * size)


def prepare() -> Iterator[Launch]:
    tokens = 2048
    for model in (M2, M3):
        dim, block = 128, 128
        heads = model.num_heads + 2 * model.num_kv_heads + (model.num_index_heads + 1 if model.index else 0)
        page = model.num_kv_heads * block * dim * 2
        blocks = tokens // block
        whole = not model.index
        values: dict[str, Any] = {
            "qkv": Pointer(tokens * heads * dim * 2),
            "k_cache": Pointer(blocks * page),
            "v_cache": Pointer(blocks * page),
            "q_weight": Pointer((model.num_heads if whole else 1) * dim * 2),
            "k_weight": Pointer((model.num_kv_heads if whole else 1) * dim * 2),
            "cos_sin": Pointer(tokens * 64 * 4),
            "positions": torch.arange(tokens),
            "slot_mapping": torch.arange(tokens),
            "num_tokens": tokens,
            "num_heads": model.num_heads,
            "num_kv_heads": model.num_kv_heads,
            "num_index_heads": model.num_index_heads,
            "head_dim": dim,
            "rotary_dim": 64,
            "max_positions": tokens,
            "num_blocks": blocks,
            "block_size": block,
            "qkv_stride": heads * dim,
            "k_cache_block_stride": page // 2,
            "v_cache_block_stride": page // 2,
            "index_k_cache_block_stride": block * dim,
            "eps": 1e-6,
            "gemma": model is M3,
            "norm_whole_projection": whole,
            "dtype": BF16,
            "weight_dtype": BF16,
            "cache_dtype": BF16,
            "index_cache_dtype": BF16,
        }
        if model.index:
            names = ("index_q_weight", "index_k_weight")
            values |= {name: Pointer(dim * 2) for name in names}
            values["index_k_cache"] = Pointer(blocks * block * dim * 2)
        # All heads are read; all but v are written, k, v and index-k to their pages.
        moved = tokens * dim * 2 * (2 * heads)
        yield Launch("norm_rope_store", "NormRopeStoreParams", f"{model.name} {tokens} tokens", values, moved)


def quant() -> Iterator[Launch]:
    rows, cols = 3072, 6144
    scale = torch.ones(rows // 128, cols // 128)
    values = {
        "out": Pointer(rows * cols * 2),
        "x": Pointer(rows * cols),
        "scale": scale,
        "rows": rows,
        "cols": cols,
    }
    strides = {"out_stride": cols, "x_stride": cols, "scale_stride": cols // 128, "dtype": BF16}
    yield Launch(
        "fp8_block_dequant", "Fp8BlockDequantParams", f"{rows} x {cols}", values | strides, 3 * rows * cols
    )
    rows = 2048
    values = {
        "out": Pointer(rows * cols),
        "scale": Pointer(rows * 4),
        "x": Pointer(rows * cols * 2),
        "rows": rows,
    }
    values |= {"cols": cols, "x_stride": cols, "dtype": BF16}
    yield Launch("dynamic_quant", "DynamicQuantParams", f"M3 {rows} x {cols}", values, 3 * rows * cols)
    for m in (16, 2048):
        n, k = 9856, 6144
        values = {
            "out": Pointer(m * n * 2),
            "x": Pointer(m * k),
            "weight": Pointer(n * k),
            "x_scale": Pointer(m * 4),
            "weight_scale": Pointer(n * 4),
            "m": m,
            "n": n,
            "k": k,
            "out_stride": n,
            "dtype": BF16,
        }
        moved = m * k + n * k + m * n * 2
        yield Launch(
            "w8a8_linear", "W8A8LinearParams", f"M3 {m} x {n} x {k}", values, moved, 2.0 * m * n * k, True
        )


def moe() -> Iterator[Launch]:
    """The experts that one die holds when 16 share them, each with the same number of rows."""
    for model, experts in ((M2, 16), (M3, 8)):
        for each in (1, 256, 1024):
            rows = experts * each
            offsets = torch.arange(experts + 1, dtype=torch.int32) * each
            h, i = model.hidden, model.inter
            shared = {"expert_offsets": offsets, "num_local_experts": experts, "hidden": h, "inter": i}
            types = {"dtype": BF16, "weight_dtype": BF16}
            shape = f"{model.name} {experts} experts x {each} rows"
            values = {
                "out": Pointer(rows * i * 2),
                "x": Pointer(rows * h * 2),
                "weight": Pointer(experts * 2 * i * h * 2),
                "sorted_rows": torch.arange(rows, dtype=torch.int32),
                "num_tokens": rows,
                "topk": 1,
                "x_stride": h,
                "activation": int(model is M3),
                "alpha": 1.702,
                "limit": 7.0,
            }
            weights = experts * 2 * i * h * 2
            moved, flops = weights + rows * (h + i) * 2, 2.0 * rows * 2 * i * h
            yield Launch("moe_gate_up", "MoeGateUpParams", shape, {**values, **shared, **types}, moved, flops)
            values = {
                "out": Pointer(rows * h * 2),
                "x": Pointer(rows * i * 2),
                "weight": Pointer(weights // 2),
            }
            values |= {"num_rows": rows}
            moved, flops = weights / 2 + rows * (h + i) * 2, 2.0 * rows * i * h
            yield Launch("moe_down", "MoeDownParams", shape, {**values, **shared, **types}, moved, flops)


def combine() -> Iterator[Launch]:
    for model, topk in ((M2, 8), (M3, 4)):
        tokens, h = 2048, model.hidden
        size = tokens * h * 2
        values = {
            "out": Pointer(size),
            "x": Pointer(topk * size),
            "shared": Pointer(size),
            "row_positions": torch.arange(tokens * topk, dtype=torch.int32),
            "topk_weights": torch.ones(tokens, topk),
            "num_tokens": tokens,
            "topk": topk,
            "hidden": h,
            "out_stride": h,
            "shared_stride": h,
            "dtype": BF16,
        }
        yield Launch(
            "moe_combine", "MoeCombineParams", f"{model.name} {tokens} tokens", values, (topk + 2) * size
        )


@dataclass
class Batch:
    """Equal sequences whose pages lie in order."""

    seqs: int
    q_len: int
    seq_len: int

    @property
    def blocks(self) -> int:
        return -(-self.seq_len // 128)

    def values(self) -> dict[str, Any]:
        table = torch.arange(self.seqs * self.blocks, dtype=torch.int32).view(self.seqs, self.blocks)
        return {
            "block_table": table,
            "cu_seqlens_q": torch.arange(self.seqs + 1, dtype=torch.int32) * self.q_len,
            "seq_lens": torch.full((self.seqs,), self.seq_len, dtype=torch.int32),
            "num_tokens": self.seqs * self.q_len,
            "num_seqs": self.seqs,
            "num_blocks": self.seqs * self.blocks,
            "block_size": 128,
            "max_blocks_per_seq": self.blocks,
            "max_seqlen_q": self.q_len,
            "block_table_stride": self.blocks,
            "dtype": BF16,
            "cache_dtype": BF16,
        }

    def __str__(self) -> str:
        kind = "decode" if self.q_len == 1 else f"prefill of {self.q_len}"
        return f"{self.seqs} x {kind} at {self.seq_len}"


def attention() -> Iterator[Launch]:
    for model, sparse in ((M2, False), (M3, False), (M3, True)):
        for batch in (Batch(1, 1, 16384), Batch(8, 1, 16384), Batch(1, 512, 16384)):
            tokens, dim = batch.seqs * batch.q_len, 128
            row = model.num_heads * dim
            cache = batch.seqs * batch.blocks * model.num_kv_heads * 128 * dim * 2
            base = {
                **batch.values(),
                "out": Pointer(tokens * row * 2),
                "q": Pointer(tokens * row * 2),
                "k_cache": Pointer(cache),
                "v_cache": Pointer(cache),
                "num_heads": model.num_heads,
                "num_kv_heads": model.num_kv_heads,
                "head_dim": dim,
                "out_token_stride": row,
                "out_head_stride": dim,
                "q_token_stride": row,
                "q_head_stride": dim,
                "scale": dim**-0.5,
                "k_cache_block_stride": model.num_kv_heads * 128 * dim,
                "v_cache_block_stride": model.num_kv_heads * 128 * dim,
            }
            shape = f"{model.name} {batch}"
            positions = torch.arange(batch.seq_len - batch.q_len, batch.seq_len)
            if not sparse:
                pairs = batch.seqs * float((positions + 1).sum())
                moved = 2 * cache + 2 * tokens * row * 2
                flops = 4 * pairs * row
                yield Launch("paged_attention", "PagedAttentionParams", shape, base, moved, flops)
                continue
            own = (positions // 128).repeat(batch.seqs)[:, None, None]
            rng = torch.Generator().manual_seed(0)
            scores = torch.rand(tokens, model.num_kv_heads, batch.blocks, generator=rng)
            scores = scores.masked_fill(torch.arange(batch.blocks) > own, -1).masked_fill(
                torch.arange(batch.blocks) == own, 2
            )
            ids = scores.topk(16).indices.sort(-1).values.int().contiguous()
            pairs = tokens * 16 * 128.0
            touched = sum(
                ids[s * batch.q_len : (s + 1) * batch.q_len, h].unique().numel()
                for s in range(batch.seqs)
                for h in range(model.num_kv_heads)
            )
            moved = touched * 128 * dim * 4 + 2 * tokens * row * 2
            values = {"base": base, "block_ids": ids, "topk": 16}
            yield Launch("sparse_attention", "SparseAttentionParams", shape, values, moved, 4 * pairs * row)


def selector() -> Iterator[Launch]:
    for batch in (Batch(8, 1, 16384), Batch(1, 1, 131072), Batch(1, 512, 16384)):
        tokens, heads, dim = batch.seqs * batch.q_len, M3.num_index_heads, 128
        cache = batch.seqs * batch.blocks * 128 * dim * 2
        values = {
            **batch.values(),
            "block_ids": Pointer(tokens * heads * 16 * 4),
            "index_q": Pointer(tokens * heads * dim * 2),
            "index_k_cache": Pointer(cache),
            "num_index_heads": heads,
            "index_dim": dim,
            "topk": 16,
            "init_blocks": 0,
            "local_blocks": 1,
            "index_q_token_stride": heads * dim,
            "index_q_head_stride": dim,
            "cache_block_stride": 128 * dim,
        }
        pairs = batch.seqs * batch.q_len * float(batch.seq_len)
        moved = cache + tokens * heads * (dim * 2 + 64)
        yield Launch(
            "select_blocks", "SelectBlocksParams", f"M3 {batch}", values, moved, 2 * pairs * heads * dim
        )


def floor_us(launch: Launch, chip: Chip) -> tuple[float, float]:
    rate = chip.flops * (2 if launch.int8 else 1)
    return launch.bytes / chip.hbm_bytes_per_second * 1e6, launch.flops / rate * 1e6


def rows(emulator: Emulator) -> Iterator[tuple[Launch, list[tuple[float, float, float, str]]]]:
    for family in (norms, prepare, quant, moe, combine, attention, selector):
        for launch in family():
            report = emulator.run(launch.op, launch.params, launch.values, dry=True)
            results = []
            for chip in CHIPS:
                # The chips differ in their clock only.
                pipes, memory = (
                    report["cycles"] / chip.mhz,
                    report["hbm_bytes"] / chip.hbm_bytes_per_second * 1e6,
                )
                results.append((max(pipes, memory), *floor_us(launch, chip), report["binding"]))
            yield launch, results


def main() -> None:
    emulator = Emulator(library_path())
    names = " | ".join(f"{c.name} us | floor: bytes, FLOPs us | ratio" for c in CHIPS)
    print(f"| op | shape | {names} | busiest |")
    print("| --- | --- |" + " ---: | ---: | ---: |" * len(CHIPS) + " --- |")
    for launch, results in rows(emulator):
        cells = []
        for time, by_bytes, by_flops, _ in results:
            cells += [
                f"{time:.1f}",
                f"{by_bytes:.1f}, {by_flops:.1f}",
                f"{time / max(by_bytes, by_flops):.2f}",
            ]
        print(f"| {launch.op} | {launch.shape} | {' | '.join(cells)} | {results[0][3]} |", flush=True)


if __name__ == "__main__":
    main()
