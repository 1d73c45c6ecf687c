"""Compares what the user says about a checkpoint with what the checkpoint says."""

from __future__ import annotations

from pathlib import Path

from mmx.config import ParallelConfig
from mmx.layout import make_layout
from mmx.model_config import load_model_config
from mmx.server.flag_kinds import EXIT_CONFIG, FlagError
from mmx.server.settings import CheckpointSettings


def check_layout(parallel: ParallelConfig, folder: Path) -> None:
    """ConfigError where the ranks do not divide the model; the folder is read only for several ranks."""
    if parallel.world_size > 1:
        make_layout(parallel, load_model_config(folder))


def check_agreement(said: CheckpointSettings, folder: Path) -> None:
    """FlagError that names the setting and both values; the folder is read only if something was said."""
    if said == CheckpointSettings(quantization="auto", block_size=None, sparse_attention={}):
        return
    model = load_model_config(folder)
    if said.quantization == "fp8" and not model.fp8_blocks:
        raise FlagError("--quantization fp8: the checkpoint's weights are not FP8", EXIT_CONFIG)
    if said.quantization == "ascend" and not model.w8a8:
        raise FlagError(
            "--quantization ascend: the checkpoint has no quant_model_description.json", EXIT_CONFIG
        )
    if said.block_size not in (None, model.block_size):
        raise FlagError(
            f"--block-size: expected {model.block_size}, the page of this model, got {said.block_size}",
            EXIT_CONFIG,
        )
    if said.sparse_attention and model.family != "m3":
        raise FlagError(
            "sparse_attention_config: the checkpoint is not an M3, its attention is dense", EXIT_CONFIG
        )
    geometry = {
        "sparse_num_index_heads": model.num_index_heads,
        "sparse_index_dim": model.head_dim,
        "sparse_block_size": model.block_size,
        "sparse_topk_blocks": model.topk_blocks,
        "sparse_init_blocks": model.init_blocks,
        "sparse_local_blocks": model.local_blocks,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
    }
    for key, found in geometry.items():
        if said.sparse_attention.get(key, found) != found:
            raise FlagError(
                f"sparse_attention_config.{key}: the checkpoint has {found}, "
                f"got {said.sparse_attention[key]!r}",
                EXIT_CONFIG,
            )
