from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from ops.compare import POISON, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]


def make_slots(num_tokens: int, num_slots: int, rng: torch.Generator) -> torch.Tensor:
    """Distinct slots in random order, every fourth token a padding one."""
    slots = torch.randperm(num_slots, generator=rng)[:num_tokens]
    slots[3::4] = -1 - torch.arange(slots[3::4].numel())
    return slots


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("kv_cache", "kv_store"))
def test_kv_store(dims, dtype, device, rng):
    tokens, heads, head_dim, block_size = (
        dims[name] for name in ("num_tokens", "num_kv_heads", "head_dim", "block_size")
    )
    num_blocks = tokens // block_size + 2
    k, v = (torch.randn(tokens, heads, head_dim, generator=rng).to(dtype).to(device) for _ in range(2))
    slots = make_slots(tokens, num_blocks * block_size, rng).to(device)
    shape = (num_blocks, heads, block_size, head_dim)
    # One buffer holds K and V of a block side by side, as in a page pool: blocks are strided.
    pool = torch.full((num_blocks, 2, *shape[1:]), POISON, dtype=dtype, device=device)
    k_cache, v_cache = pool[:, 0], pool[:, 1]
    expected_k, expected_v = torch.full_like(k_cache, POISON), torch.full_like(v_cache, POISON)
    reference.kv_store(expected_k, expected_v, k, v, slots)
    ops.kv_store(k_cache, v_cache, strided(k), strided(v, pad=5), slots)
    assert_equal(k_cache, expected_k, name="k_cache")
    assert_equal(v_cache, expected_v, name="v_cache")
    assert int((~k_cache.isnan()).sum()) == int((slots >= 0).sum()) * heads * head_dim


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("kv_cache", "index_k_store"))
def test_index_k_store(dims, dtype, device, rng):
    tokens, index_dim, block_size = dims["num_tokens"], dims["index_dim"], dims["block_size"]
    num_blocks = tokens // block_size + 2
    index_k = torch.randn(tokens, index_dim, generator=rng).to(dtype).to(device)
    slots = make_slots(tokens, num_blocks * block_size, rng).to(device)
    cache = torch.full((num_blocks, 3, block_size, index_dim), POISON, dtype=dtype, device=device)[:, 1]
    expected = torch.full_like(cache, POISON)
    reference.index_k_store(expected, index_k, slots)
    ops.index_k_store(cache, strided(index_k), slots)
    assert_equal(cache, expected)


def test_kv_store_puts_a_token_at_block_and_offset(device):
    k_cache, v_cache = (torch.zeros(3, 2, 4, 1, device=device) for _ in range(2))
    k = torch.tensor([[[1.0], [2.0]]], device=device)
    ops.kv_store(k_cache, v_cache, k, -k, torch.tensor([2 * 4 + 3], device=device))
    assert k_cache[2, :, 3, 0].tolist() == [1, 2]
    assert v_cache[2, :, 3, 0].tolist() == [-1, -2]
    assert [int(cache.count_nonzero()) for cache in (k_cache, v_cache)] == [2, 2]


def test_kv_store_takes_heads_from_a_wider_projection(device, rng):
    qkv = torch.randn(6, 5, 8, generator=rng).to(device)
    caches = [torch.zeros(2, 2, 4, 8, device=device) for _ in range(4)]
    slots = torch.tensor([5, 0, 1, 7, 2, 3], device=device)
    ops.kv_store(caches[0], caches[1], qkv[:, 1:3], qkv[:, 3:], slots)
    reference.kv_store(caches[2], caches[3], qkv[:, 1:3], qkv[:, 3:], slots)
    assert_equal(caches[0], caches[2])
    assert_equal(caches[1], caches[3])


def test_stores_do_not_depend_on_threads(rng):
    k = torch.randn(257, 4, 128, generator=rng)
    slots = torch.randperm(384, generator=rng)[:257]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        k_cache, v_cache, index_cache = (
            torch.zeros(3, 4, 128, 128),
            torch.zeros(3, 4, 128, 128),
            torch.zeros(3, 128, 128),
        )
        ops.kv_store(k_cache, v_cache, k, -k, slots)
        ops.index_k_store(index_cache, k[:, 2], slots)
        results.append((k_cache, v_cache, index_cache))
    torch.set_num_threads(1)
    for one, two in zip(*results, strict=True):
        assert_equal(one, two)


def test_kv_store_names_what_is_wrong(device):
    cache, x = torch.zeros(2, 3, 4, 8, device=device), torch.zeros(1, 3, 8, device=device)
    slots = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(
        RuntimeError, match=r"kv_store: v must be \[num_tokens=1, num_kv_heads=3, head_dim=8\]"
    ):
        ops.kv_store(cache, cache.clone(), x, x[:, :2], slots)
    with pytest.raises(
        RuntimeError, match="kv_store: k_cache must be float32 or float8_e4m3fn, got bfloat16"
    ):
        ops.kv_store(cache.bfloat16(), cache.bfloat16(), x, x, slots)
    with pytest.raises(RuntimeError, match=r"the last 3 dimension\(s\) of k_cache must be contiguous"):
        ops.kv_store(torch.zeros(2, 4, 3, 8, device=device).transpose(1, 2), cache, x, x, slots)
    with pytest.raises(
        RuntimeError, match=r"index_k_store: slot_mapping must be \[num_tokens=1\], got \[2\]"
    ):
        ops.index_k_store(cache[:, 0].contiguous(), x[:, 0], slots.repeat(2))


def test_stores_reject_slots_past_the_pool():
    cache, x = torch.zeros(2, 1, 4, 8), torch.zeros(1, 1, 8)
    with pytest.raises(RuntimeError, match=r"kv_store: slot_mapping\[0\] must be below 8 .*, got 8"):
        ops.kv_store(cache, cache.clone(), x, x, torch.tensor([8]))
    with pytest.raises(RuntimeError, match=r"index_k_store: slot_mapping\[0\] must be below 8 .*, got 9"):
        ops.index_k_store(cache[:, 0].contiguous(), x[:, 0], torch.tensor([9]))


def test_opcheck(device, rng):
    cache, x = torch.zeros(2, 1, 4, 8, device=device), torch.randn(3, 1, 8, generator=rng).to(device)
    slots = torch.tensor([1, -1, 6], device=device)
    torch.library.opcheck(torch.ops.mmx.kv_store.default, (cache, cache.clone(), x, x.clone(), slots))
    torch.library.opcheck(
        torch.ops.mmx.index_k_store.default, (cache[:, 0].contiguous(), x[:, 0].contiguous(), slots)
    )
