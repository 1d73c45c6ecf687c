"""Flags of the device layout and of the cache. One device runs the model today: what asks for more is
refused by name, what only describes the others is answered with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmx.server.flag_kinds import BOOL, FLOAT, INT, JSON, SIZE, TEXT, Flag, row

Verdict = Callable[[Any], str | None]


def other_number(only: int, thing: str) -> Verdict:
    """Refuses all numbers but ``only``, with which nobody needs the thing that is not built."""
    return lambda value: f"{thing} is not built yet, only {only} is served" if value != only else None


def switched_on(thing: str) -> Verdict:
    return lambda value: f"{thing} is not built yet" if value else None


def always(sentence: str) -> Verdict:
    """The same sentence whatever the value is."""
    return lambda value: sentence


def other_than(allowed: tuple[str, ...], thing: str) -> Verdict:
    return lambda value: None if value in allowed else f"{thing}, only {' or '.join(allowed)} is served"


ONE_DEVICE = always("one device serves, so there are no other ranks to arrange")


def layout() -> list[Flag]:
    s = "Parallel layout"
    return [
        row(
            s, "tensor_parallel_size", INT, 1, None, "only 1: tensor parallelism is not built yet",
            aliases=("tp_size",), short=("tp",), refuse=other_number(1, "tensor parallelism"),
        ),
        row(
            s, "pipeline_parallel_size", INT, 1, None, "only 1: pipeline parallelism is not built yet",
            aliases=("pp_size",), short=("pp",), refuse=other_number(1, "pipeline parallelism"),
        ),
        row(
            s, "data_parallel_size", INT, 1, None, "only 1: data parallelism is not built yet",
            aliases=("dp_size",), short=("dp",), refuse=other_number(1, "data parallelism"),
        ),
        row(
            s, "data_parallel_size_local", INT, 1, None, "only 1: data parallelism is not built yet",
            short=("dpl",), refuse=other_number(1, "data parallelism"),
        ),
        row(
            s, "data_parallel_start_rank", INT, 0, None, "only 0: data parallelism is not built yet",
            short=("dpr",), refuse=other_number(0, "data parallelism"),
        ),
        row(
            s, "data_parallel_address", TEXT, None, None, "accepted; one device has no peers",
            short=("dpa",), note=ONE_DEVICE,
        ),
        row(
            s, "data_parallel_rpc_port", INT, None, None, "accepted; one device has no peers",
            short=("dpp",), note=ONE_DEVICE,
        ),
        row(
            s, "data_parallel_backend", TEXT, None, None, "accepted; one device has no peers",
            short=("dpb",), note=ONE_DEVICE,
        ),
        row(
            s, "headless", BOOL, False, None, "only false: serving from several nodes is not built yet",
            refuse=switched_on("serving from several nodes"),
        ),
        row(
            s, "api_server_count", INT, 1, None, "only 1: several HTTP processes are not built yet",
            refuse=other_number(1, "HTTP in several processes"),
        ),
        row(
            s, "enable_expert_parallel", BOOL, False, None, "only false: expert parallelism is not built yet",
            short=("ep",), refuse=switched_on("expert parallelism"),
        ),
        row(
            s, "moe_expert_parallel_size", INT, 1, None, "only 1: expert parallelism is not built yet",
            aliases=("ep_size",), refuse=other_number(1, "expert parallelism"),
        ),
        row(
            s, "moe_tensor_parallel_size", INT, 1, None, "only 1: tensor parallelism is not built yet",
            refuse=other_number(1, "tensor parallelism of the experts"),
        ),
        row(
            s, "moe_cluster_parallel_size", INT, 1, None, "only 1: there are no expert clusters",
            refuse=other_number(1, "an expert cluster"),
        ),
        row(
            s, "enable_attention_dp", BOOL, False, None,
            "only false: attention data parallelism is not built yet", aliases=("enable_dp_attention",),
            refuse=switched_on("attention data parallelism"),
        ),
        row(
            s, "attention_dp_config", JSON, {}, None, "accepted; there are no attention ranks to balance",
            keys=("enable_balance", "timeout_iters", "batching_wait_iters"), note=ONE_DEVICE,
        ),
        row(
            s, "prefill_context_parallel_size", INT, 1, None, "only 1: context parallelism is not built yet",
            aliases=("context_parallel_size", "cp_size"), short=("pcp",),
            refuse=other_number(1, "context parallelism of prefill"),
        ),
        row(
            s, "decode_context_parallel_size", INT, 1, None, "only 1: context parallelism is not built yet",
            short=("dcp",), refuse=other_number(1, "context parallelism of decode"),
        ),
        row(
            s, "cp_kv_cache_interleave_size", INT, None, None, "accepted; there is no context parallelism",
            note=ONE_DEVICE,
        ),
        row(
            s, "enable_eplb", BOOL, False, None, "only false: expert load balancing is not built yet",
            refuse=switched_on("expert load balancing"),
        ),
        row(
            s, "nnodes", INT, 1, None, "only 1: serving from several nodes is not built yet",
            refuse=other_number(1, "serving from several nodes"),
        ),
        row(
            s, "node_rank", INT, 0, None, "only 0: serving from several nodes is not built yet",
            refuse=other_number(0, "serving from several nodes"),
        ),
        row(
            s, "master_addr", TEXT, None, None, "accepted; one device has no peers", note=ONE_DEVICE,
        ),
        row(
            s, "master_port", INT, None, None, "accepted; one device has no peers", note=ONE_DEVICE,
        ),
        row(
            s, "gpus_per_node", INT, None, None, "accepted; one device is used, whichever is visible first",
            note=ONE_DEVICE,
        ),
        row(
            s, "enable_balance_scheduling", BOOL, False, None, "accepted; there are no ranks to balance",
            env=("VLLM_ASCEND_BALANCE_SCHEDULING",), note=ONE_DEVICE,
        ),
        row(
            s, "enable_sequence_parallel_norm", BOOL, False, None, "accepted; one device has whole rows",
            env=("VLLM_ASCEND_ENABLE_FLASHCOMM1",), note=ONE_DEVICE,
        ),
        row(
            s, "enable_fused_mc2", INT, 0, None, "accepted; one device sends experts nothing",
            env=("VLLM_ASCEND_ENABLE_FUSED_MC2",), note=ONE_DEVICE,
        ),
    ]  # fmt: skip


POOL_SIZE = always(
    "the page pool is sized by the engine from the free memory; --kv-cache-memory-bytes sets it exactly"
)


def cache() -> list[Flag]:
    s = "Cache"
    return [
        row(
            s, "gpu_memory_utilization", FLOAT, None, None,
            "accepted; the engine sizes the page pool, --kv-cache-memory-bytes sets it exactly",
            aliases=("device_memory_utilization",), note=POOL_SIZE,
        ),
        row(
            s, "kv_cache_free_gpu_memory_fraction", FLOAT, None, None,
            "accepted; the engine sizes the page pool, --kv-cache-memory-bytes sets it exactly",
            aliases=("free_gpu_memory_fraction",), yaml=("kv_cache_config.free_gpu_memory_fraction",),
            note=POOL_SIZE,
        ),
        row(
            s, "kv_cache_max_tokens", SIZE, None, None,
            "accepted; the engine sizes the page pool, --kv-cache-memory-bytes sets it exactly",
            yaml=("kv_cache_config.max_tokens",), note=POOL_SIZE,
        ),
        row(
            s, "kv_cache_dtype", TEXT, "auto", None, "auto or bfloat16: an FP8 cache is not built yet",
            yaml=("kv_cache_config.dtype",),
            refuse=other_than(("auto", "bf16", "bfloat16"), "a quantised KV cache is not built yet"),
        ),
        row(
            s, "index_kv_dtype", TEXT, "auto", None, "auto or bfloat16: an FP8 index cache is not built yet",
            refuse=other_than(("auto", "bf16", "bfloat16"), "a quantised index cache is not built yet"),
        ),
        row(
            s, "block_size", INT, None, "checkpoint.block_size",
            "tokens of a page; must be what the checkpoint's attention uses (128)", aliases=("page_size",),
            yaml=("kv_cache_config.tokens_per_block",),
        ),
        row(
            s, "kv_offloading_size", FLOAT, 0.0, None, "only 0: cache pages are not moved to the host yet",
            yaml=("kv_cache_config.host_cache_size",),
            refuse=other_number(0, "moving cache pages to the host"),
        ),
        row(
            s, "block_reuse_policy", TEXT, "all", None, "only all: reuse per conversation is not built yet",
            yaml=("kv_cache_config.block_reuse_policy",),
            refuse=other_than(("all",), "reuse within one conversation is not built yet"),
        ),
        row(
            s, "kv_event_buffer_max_size", INT, 0, None, "accepted; no cache events are published",
            yaml=("kv_cache_config.event_buffer_max_size",), note=always("cache events are not published"),
        ),
        row(
            s, "use_kv_cache_manager_v2", BOOL, False, None, "accepted; there is one cache manager",
            yaml=("kv_cache_config.use_kv_cache_manager_v2",), note=always("there is one cache manager"),
        ),
    ]  # fmt: skip
