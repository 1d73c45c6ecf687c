"""The page pool: how many pages fit, how long a sequence may get, and the tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mmx.errors import ConfigError, MemoryPlanError
from mmx.layers import LayerCache
from mmx.model_config import ModelConfig
from mmx.runner.memory import MIB


class PoolPlan(NamedTuple):
    """``num_blocks`` pages; ``reason`` says in a phrase why ``max_model_len`` is what it is."""

    num_blocks: int
    max_model_len: int
    reason: str


class PageTypes(NamedTuple):
    """Of K and V, and of index-K."""

    kv: torch.dtype
    index_k: torch.dtype


def page_types(dtype: torch.dtype, kv_cache_dtype: str, index_kv_dtype: str) -> PageTypes:
    """For the engine's settings, of ``CACHE_DTYPES``, and a model computing in ``dtype``. ConfigError where
    pages could not hold what is stored in them."""
    types = []
    for field, name in (("kv_cache_dtype", kv_cache_dtype), ("index_kv_dtype", index_kv_dtype)):
        if name.startswith("bf") and dtype != torch.bfloat16:
            raise ConfigError(f"{field} must be auto or fp8 for a model that computes in {dtype}")
        types.append(torch.float8_e4m3fn if name.startswith("fp8") else dtype)
    return PageTypes(*types)


def page_bytes(config: ModelConfig, types: PageTypes | torch.dtype) -> int:
    """Bytes of one page over all layers: K, V and, on block-sparse layers, index-K."""
    kv_type, index_type = types if isinstance(types, PageTypes) else (types, types)
    kv = 2 * config.num_kv_heads * config.head_dim * config.num_layers * kv_type.itemsize
    index_k = config.index_dim * sum(config.sparse_layers) * index_type.itemsize
    return (kv + index_k) * config.block_size


def plan_pool(
    config: ModelConfig,
    types: PageTypes | torch.dtype,
    budget: int,
    budget_rule: str,
    max_model_len: int | None,
    num_holders: int = 1,
) -> PoolPlan:
    """Fit pages into ``budget`` bytes. ``max_model_len`` None: the longest that config and pool allow. Each
    of ``num_holders`` ranks holds a part of a page's tokens as long as the model's page.

    Raises ConfigError if more positions are asked for than the model has, MemoryPlanError if one sequence
    of the length asked for (or one page) does not fit.
    """
    if max_model_len is not None and max_model_len > config.max_positions:
        raise ConfigError(
            f"max_model_len must be at most the model's max_position_embeddings={config.max_positions}, "
            f"got {max_model_len}"
        )
    size = page_bytes(config, types)
    num_blocks = budget // size
    page_tokens = num_holders * config.block_size
    capacity = num_blocks * page_tokens
    pool = (
        f"the page pool of {budget / MIB:.1f} MiB ({budget_rule}) holds {num_blocks} pages of "
        f"{page_tokens} tokens, {size / MIB:.2f} MiB each"
    )
    if num_blocks == 0 or (max_model_len or 0) > capacity:
        raise MemoryPlanError(f"max_model_len={max_model_len or 'auto'} does not fit: {pool}")
    if max_model_len is not None:
        return PoolPlan(num_blocks, max_model_len, "as asked for")
    if capacity < config.max_positions:
        return PoolPlan(num_blocks, capacity, pool)
    return PoolPlan(num_blocks, config.max_positions, "max_position_embeddings of the model")


def allocate_pool(
    config: ModelConfig, types: PageTypes, device: torch.device, num_blocks: int
) -> list[LayerCache]:
    """The tensors of all layers, uninitialised: no kernel reads a slot that was not written."""

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty((num_blocks, *shape), dtype=dtype, device=device)

    kv_shape = (config.num_kv_heads, config.block_size, config.head_dim)
    return [
        LayerCache(
            empty(types.kv, *kv_shape),
            empty(types.kv, *kv_shape),
            empty(types.index_k, config.block_size, config.index_dim) if sparse else None,
        )
        for sparse in config.sparse_layers
    ]
