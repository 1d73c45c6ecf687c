from __future__ import annotations

import torch


def kv_store(
    k_cache: torch.Tensor, v_cache: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    kept = slot_mapping >= 0
    block_size = k_cache.shape[2]
    blocks, offsets = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    k_cache[blocks, :, offsets] = k[kept].to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v[kept].to(v_cache.dtype)


def index_k_store(index_k_cache: torch.Tensor, index_k: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    kept = slot_mapping >= 0
    block_size = index_k_cache.shape[1]
    blocks, offsets = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    index_k_cache[blocks, offsets] = index_k[kept].to(index_k_cache.dtype)
