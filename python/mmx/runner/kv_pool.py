"""The page pool: how many pages fit, how long a sequence may get, and the tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mmx.errors import ConfigError, MemoryPlanError
from mmx.layers import LayerCache
from mmx.model_config import ModelConfig

MIB = 1 << 20


class PoolPlan(NamedTuple):
    """``num_blocks`` pages; ``reason`` says in a phrase why ``max_model_len`` is what it is."""

    num_blocks: int
    max_model_len: int
    reason: str


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers: K, V and, on block-sparse layers, index-K."""
    kv = 2 * config.num_kv_heads * config.head_dim * config.num_layers
    index_k = config.index_dim * sum(config.sparse_layers)
    return (kv + index_k) * config.block_size * dtype.itemsize


def plan_pool(
    config: ModelConfig, dtype: torch.dtype, budget: int, budget_rule: str, max_model_len: int | None
) -> PoolPlan:
    """Fit pages into ``budget`` bytes. ``max_model_len`` None: the longest that config and pool allow.

    Raises ConfigError if more positions are asked for than the model has, MemoryPlanError if one sequence
    of the length asked for (or one page) does not fit.
    """
    if max_model_len is not None and max_model_len > config.max_positions:
        raise ConfigError(
            f"max_model_len must be at most the model's max_position_embeddings={config.max_positions}, "
            f"got {max_model_len}"
        )
    size = page_bytes(config, dtype)
    num_blocks = budget // size
    capacity = num_blocks * config.block_size
    pool = (
        f"the page pool of {budget / MIB:.1f} MiB ({budget_rule}) holds {num_blocks} pages of "
        f"{config.block_size} tokens, {size / MIB:.2f} MiB each"
    )
    if num_blocks == 0 or (max_model_len or 0) > capacity:
        raise MemoryPlanError(f"max_model_len={max_model_len or 'auto'} does not fit: {pool}")
    if max_model_len is not None:
        return PoolPlan(num_blocks, max_model_len, "as asked for")
    if capacity < config.max_positions:
        return PoolPlan(num_blocks, capacity, pool)
    return PoolPlan(num_blocks, config.max_positions, "max_position_embeddings of the model")


def allocate_pool(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, num_blocks: int
) -> list[LayerCache]:
    """The tensors of all layers, uninitialised: no kernel reads a slot that was not written."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty((num_blocks, *shape), dtype=dtype, device=device)

    kv_shape = (config.num_kv_heads, config.block_size, config.head_dim)
    return [
        LayerCache(
            empty(*kv_shape), empty(*kv_shape), empty(config.block_size, config.index_dim) if sparse else None
        )
        for sparse in config.sparse_layers
    ]
