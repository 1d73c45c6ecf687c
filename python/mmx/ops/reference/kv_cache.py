from __future__ import annotations

import torch


def kv_store(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    kept = slot_mapping >= 0
    block_size = k_cache.shape[2]
    blocks, offsets = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    for cache, x, scale in ((k_cache, k, k_scale), (v_cache, v, v_scale)):
        cache[blocks, :, offsets] = encode(x[kept], scale, cache.dtype)


def index_k_store(index_k_cache: torch.Tensor, index_k: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    kept = slot_mapping >= 0
    block_size = index_k_cache.shape[1]
    blocks, offsets = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    index_k_cache[blocks, offsets] = encode(index_k[kept], None, index_k_cache.dtype)


def encode(x: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """``x`` [num_tokens, num_kv_heads, head_dim] as a page of type ``dtype`` holds it."""
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    codes = x.float() if scale is None else x.float() / scale[:, None]
    largest = torch.finfo(dtype).max
    return codes.clamp(-largest, largest).to(dtype)
