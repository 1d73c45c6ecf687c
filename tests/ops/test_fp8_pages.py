"""Pages of float8_e4m3fn: stores, selector and attention, against the reference on the decoded codes."""

from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import assert_close_to_truth, assert_equal
from ops.paged import PagedBatch, draw_batch, make_batch
from ops.test_attention import random_blocks, widened
from ops.test_selector import assert_selected

FP8 = torch.float8_e4m3fn
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]
INF, NAN = float("inf"), float("nan")


def bits(pages: torch.Tensor) -> torch.Tensor:
    """Codes as integers, every NaN as 0x7F."""
    codes = pages.cpu().view(torch.uint8)
    return codes.masked_fill(codes & 0x7F == 0x7F, 0x7F)


def every_rounding() -> torch.Tensor:
    """f32 values at, between and just beside all neighbouring codes, with extremes; padded to 32 a row."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()
    middles = (codes[1:] + codes[:-1]) / 2
    near = torch.cat([torch.nextafter(middles, torch.tensor(x)) for x in (0.0, INF)])
    odd = torch.tensor([448, 464, 465, 1e4, 3e38, INF, NAN, 1e-30, 2**-10, 2**-11, 1.5 * 2**-9])
    values = torch.cat([codes, middles, near, odd])
    values = torch.cat([values, -values])
    return torch.nn.functional.pad(values, (0, -values.numel() % 32)).view(-1, 2, 16)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_store_rounds_every_value(dtype, scaled, device):
    k = every_rounding().to(dtype)
    tokens = k.shape[0]
    scales = [torch.tensor([0.37, 3.0]), torch.tensor([1.0, 2.0**-7])] if scaled else [None, None]
    slots = torch.arange(tokens - 1, -1, -1)
    slots[1] = -1
    shape = (tokens // 4 + 2, 2, 4, 16)
    expected = [torch.zeros(shape).to(FP8) for _ in range(2)]
    reference.kv_store(*expected, k, -k, slots, *scales)
    stored = [torch.zeros(shape).to(FP8).to(device) for _ in range(2)]
    arguments = [None if s is None else s.to(device) for s in scales]
    wide = torch.nn.functional.pad(k, (0, 4)).to(device)[..., :16]
    ops.kv_store(*stored, wide, (-k).to(device), slots.to(device), *arguments)
    for name, out, want in zip(("k", "v"), stored, expected, strict=True):
        assert_equal(bits(out), bits(want), name=name)
    expected_index, stored_index = torch.zeros(tokens, 1, 16).to(FP8), torch.zeros(tokens, 1, 16).to(FP8)
    stored_index = stored_index.to(device)
    reference.index_k_store(expected_index, k[:, 0], slots)
    ops.index_k_store(stored_index, k[:, 0].to(device), slots.to(device))
    assert_equal(bits(stored_index), bits(expected_index), name="index_k")


@pytest.mark.parametrize("dims", load("kv_cache", "kv_store"))
def test_store_shapes(dims, device, rng):
    tokens, heads, dim, block_size = (
        dims[n] for n in ("num_tokens", "num_kv_heads", "head_dim", "block_size")
    )
    k, v = (torch.randn(tokens, heads, dim, generator=rng).bfloat16() for _ in range(2))
    scales = [torch.rand(heads, generator=rng) + 0.1 for _ in range(2)]
    slots = torch.randperm((tokens // block_size + 2) * block_size, generator=rng)[:tokens]
    shape = (tokens // block_size + 2, heads, block_size, dim)
    expected = [torch.zeros(shape).to(FP8) for _ in range(2)]
    stored = [torch.zeros(shape).to(FP8).to(device) for _ in range(2)]
    reference.kv_store(*expected, k, v, slots, *scales)
    ops.kv_store(*stored, *(t.to(device) for t in (k, v, slots, *scales)))
    for out, want in zip(stored, expected, strict=True):
        assert_equal(bits(out), bits(want))


def attention_inputs(
    batch: PagedBatch, dims: dict[str, int], dtype: torch.dtype, device: torch.device, rng: torch.Generator
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """(q, k_cache, v_cache), scales; unused slots hold NaN."""
    q = torch.randn(batch.num_tokens, dims["num_heads"], dims["head_dim"], generator=rng).to(dtype)
    shape = (batch.num_blocks, dims["num_kv_heads"], batch.block_size, dims["head_dim"])
    pages = [(batch.poison_unused(torch.randn(shape, generator=rng) * 40, 2)).to(FP8) for _ in range(2)]
    scales = [(torch.rand(dims["num_kv_heads"], generator=rng) + 0.5) / 40 for _ in range(2)]
    named = {"k_scale": scales[0].to(device), "v_scale": scales[1].to(device)}
    return (q.to(device), *(p.to(device) for p in pages)), named


def check(name: str, args: tuple, scales: dict[str, torch.Tensor], **named: bool) -> torch.Tensor:
    out = getattr(ops, name)(*args, **scales, **named)
    run = getattr(reference, name)
    wide = {key: scale.double() for key, scale in scales.items()}
    assert_close_to_truth(out, run(*widened(args), **wide), run(*args, **scales))
    return out


@pytest.mark.parametrize("fixed_split", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("attention", "paged_attention"))
def test_paged_attention(dims, dtype, fixed_split, device, rng):
    batch = draw_batch(dims, rng)
    args, scales = attention_inputs(batch, dims, dtype, device, rng)
    tail = (*batch.arguments(device), dims["head_dim"] ** -0.5)
    check("paged_attention", (*args, *tail), scales, fixed_split=fixed_split)


@pytest.mark.parametrize("fixed_split", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("attention", "sparse_attention"))
def test_sparse_attention(dims, dtype, fixed_split, device, rng):
    batch = draw_batch(dims, rng)
    args, scales = attention_inputs(batch, dims, dtype, device, rng)
    ids = random_blocks(batch, dims["num_kv_heads"], dims["topk"], rng).to(device)
    tail = (*batch.arguments(device), dims["head_dim"] ** -0.5)
    check("sparse_attention", (*args, ids, *tail), scales, fixed_split=fixed_split)


def test_scales_are_optional(device, rng):
    batch = make_batch([(2, 30)], 8, rng)
    dims = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    args, _ = attention_inputs(batch, dims, torch.float32, device, rng)
    ones = {name: torch.ones(2, device=device) for name in ("k_scale", "v_scale")}
    tail = (*batch.arguments(device), 0.01)
    assert_equal(ops.paged_attention(*args, *tail), ops.paged_attention(*args, *tail, **ones))


@pytest.mark.parametrize("integers", [True, False], ids=["integers", "normal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("selector", "select_blocks"))
def test_select_blocks(dims, dtype, integers, device, rng):
    def draw(*shape: int) -> torch.Tensor:
        return (
            torch.randint(-2, 3, shape, generator=rng).float()
            if integers
            else torch.randn(shape, generator=rng)
        )

    batch = draw_batch(dims, rng)
    q = draw(batch.num_tokens, dims["num_index_heads"], dims["index_dim"]).to(dtype)
    k = batch.poison_unused(draw(batch.num_blocks, batch.block_size, dims["index_dim"]), 1).to(FP8)
    numbers = (dims["topk"], dims["init_blocks"], dims["local_blocks"])
    out = ops.select_blocks(q.to(device), k.to(device), *batch.arguments(device), *numbers).cpu()
    expected = reference.select_blocks(q, k, *batch.arguments(torch.device("cpu")), *numbers)
    assert_selected(out, expected, integers, batch, q, k.double())


def test_names_what_is_wrong(device):
    x, slots = torch.zeros(1, 3, 8, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    cache, scale = torch.zeros(2, 3, 4, 8, device=device), torch.ones(3, device=device)
    codes = cache.to(FP8)
    with pytest.raises(RuntimeError, match="kv_store: k_scale and v_scale must be given together"):
        ops.kv_store(codes, codes.clone(), x, x, slots, scale)
    with pytest.raises(RuntimeError, match="k_scale and v_scale belong to float8_e4m3fn pages, got float32"):
        ops.kv_store(cache, cache.clone(), x, x, slots, scale, scale)
    with pytest.raises(RuntimeError, match=r"k_scale must be \[num_kv_heads=3\], got \[2\]"):
        ops.kv_store(codes, codes.clone(), x, x, slots, scale[:2], scale)
    with pytest.raises(RuntimeError, match="v_cache must be float8_e4m3fn, got float32"):
        ops.kv_store(codes, cache, x, x, slots)
