"""Flags of the device layout and of the cache. What is not built is refused by name, what has no effect is
answered with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmx.config import CACHE_DTYPES
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


def layout() -> list[Flag]:
    s = "Parallel layout"
    return [
        row(
            s, "tensor_parallel_size", INT, 1, "parallel.tensor_parallel_size",
            "ranks that share heads, columns and vocabulary", aliases=("tp_size",), short=("tp",),
        ),
        row(
            s, "pipeline_parallel_size", INT, 1, None, "only 1: pipeline parallelism is not built yet",
            aliases=("pp_size",), short=("pp",), refuse=other_number(1, "pipeline parallelism"),
        ),
        row(
            s, "data_parallel_size", INT, 1, "parallel.data_parallel_size",
            "groups of ranks with requests and pages of their own, behind one server",
            aliases=("dp_size",), short=("dp",),
        ),
        row(
            s, "data_parallel_size_local", INT, None, "launch.data_parallel_size_local",
            "groups that this command starts; all by default", short=("dpl",),
        ),
        row(
            s, "data_parallel_start_rank", INT, 0, "launch.data_parallel_start_rank",
            "first group that this command starts", short=("dpr",),
        ),
        row(
            s, "data_parallel_address", TEXT, None, "launch.data_parallel_address",
            "where rank 0 waits for the groups of other commands", short=("dpa",),
        ),
        row(
            s, "data_parallel_rpc_port", INT, None, "launch.data_parallel_rpc_port",
            "port of that address; 29550 by default", short=("dpp",),
        ),
        row(
            s, "data_parallel_backend", TEXT, None, None, "accepted; mmx starts its ranks itself",
            short=("dpb",), note=always("mmx starts its ranks itself"),
        ),
        row(
            s, "headless", BOOL, False, "launch.headless", "start ranks without HTTP, for rank 0 elsewhere",
        ),
        row(
            s, "api_server_count", INT, 1, None, "only 1: several HTTP processes are not built yet",
            refuse=other_number(1, "HTTP in several processes"),
        ),
        row(
            s, "enable_expert_parallel", BOOL, None, "parallel.expert_parallel",
            "deal experts out whole over all ranks; by default only where they can not be cut",
            short=("ep",),
        ),
        row(
            s, "moe_expert_parallel_size", INT, None, "parallel.expert_parallel_size",
            "ranges of experts; times --moe-tensor-parallel-size the ranks that share them",
            aliases=("ep_size",),
        ),
        row(
            s, "moe_tensor_parallel_size", INT, None, "parallel.moe_tensor_parallel_size",
            "slices of each expert",
        ),
        row(
            s, "moe_cluster_parallel_size", INT, 1, None, "only 1: there are no expert clusters",
            refuse=other_number(1, "an expert cluster"),
        ),
        row(
            s, "enable_attention_dp", BOOL, False, "parallel.attention_dp",
            "the tensor-parallel ranks take requests of their own in attention and share the experts",
            aliases=("enable_dp_attention",),
        ),
        row(
            s, "attention_dp_config", JSON, {}, None,
            "accepted; requests go to where the least is to be done",
            keys=("enable_balance", "timeout_iters", "batching_wait_iters"),
            note=always("requests go to where the least is to be done, ranks do not wait for each other"),
        ),
        row(
            s, "prefill_context_parallel_size", INT, 1, "parallel.prefill_context_parallel_size",
            "ranks that compute parts of the same prompt", aliases=("context_parallel_size", "cp_size"),
            short=("pcp",),
        ),
        row(
            s, "decode_context_parallel_size", INT, 1, "parallel.decode_context_parallel_size",
            "of the tensor-parallel ranks so many hold the pages of a sequence by turns", short=("dcp",),
        ),
        row(
            s, "cp_kv_cache_interleave_size", INT, None, None,
            "accepted; pages are dealt out one by one (--decode-context-parallel-size)",
            note=always("pages are dealt out one by one"),
        ),
        row(
            s, "all2all_backend", TEXT, "auto", "parallel.all2all_backend",
            "alltoall sends tokens to the ranks of their experts only; auto and allgather send them to all",
            choices=("auto", "allgather", "alltoall"), aliases=("moe_a2a_backend",),
        ),
        row(
            s, "enable_eplb", BOOL, False, None, "only false: expert load balancing is not built yet",
            refuse=switched_on("expert load balancing"),
        ),
        row(
            s, "nnodes", INT, 1, "launch.nnodes", "machines, each of which starts an equal part of the ranks",
        ),
        row(s, "node_rank", INT, 0, "launch.node_rank", "which of them this is; 0 has rank 0"),
        row(
            s, "master_addr", TEXT, None, "launch.master_addr", "where rank 0 waits for the others",
        ),
        row(
            s, "master_port", INT, None, "launch.master_port",
            "port of that address; a free one, 29550 or the launcher's by default",
        ),
        row(
            s, "rendezvous_timeout", FLOAT, 600.0, "parallel.rendezvous_timeout",
            "seconds until missing ranks end the start", aliases=("distributed_timeout_seconds",),
        ),
        row(
            s, "step_timeout", FLOAT, 60.0, "parallel.step_timeout",
            "seconds after which a step of several ranks counts as hanging and ends the engine",
        ),
        row(
            s, "gpus_per_node", INT, None, None, "accepted; each rank takes the GPU of its local number",
            note=always("each rank takes the GPU of its local number"),
        ),
        row(
            s, "enable_balance_scheduling", BOOL, False, None,
            "accepted; requests go to where the least is to be done",
            env=("VLLM_ASCEND_BALANCE_SCHEDULING",),
            note=always("requests go to where the least is to be done"),
        ),
        row(
            s, "enable_sequence_parallel_norm", BOOL, False, "parallel.sequence_parallel_norm",
            "norms over slices of the tokens: two halves of an all-reduce around them",
            env=("VLLM_ASCEND_ENABLE_FLASHCOMM1",),
        ),
        row(
            s, "enable_cpu_binding", BOOL, False, "launch.bind_cpus",
            "each local rank gets processors of its own",
        ),
        row(
            s, "enable_fused_mc2", INT, 0, None, "accepted; tokens reach the experts by all-gather",
            env=("VLLM_ASCEND_ENABLE_FUSED_MC2",), note=always("tokens reach the experts by all-gather"),
        ),
    ]  # fmt: skip


POOL_SIZE = always(
    "the page pool is sized by the engine from the free memory; --kv-cache-memory-bytes sets it exactly"
)


def cache() -> list[Flag]:
    s = "Cache"
    return [
        row(
            s, "gpu_memory_utilization", FLOAT, None, "engine.gpu_memory_utilization",
            "share of the whole device that the engine may use; default: 0.92 of a GPU or of what is free",
            aliases=("device_memory_utilization",),
        ),
        row(
            s, "kv_cache_free_gpu_memory_fraction", FLOAT, None, "engine.kv_cache_free_gpu_memory_fraction",
            "share of the memory left by weights, steps and graphs that the page pool takes",
            aliases=("free_gpu_memory_fraction",), yaml=("kv_cache_config.free_gpu_memory_fraction",),
        ),
        row(
            s, "kv_cache_max_tokens", SIZE, None, None,
            "accepted; the engine sizes the page pool, --kv-cache-memory-bytes sets it exactly",
            yaml=("kv_cache_config.max_tokens",), note=POOL_SIZE,
        ),
        row(
            s, "kv_cache_dtype", TEXT, "auto", "engine.kv_cache_dtype",
            "type of K and V in pages: the model's, or fp8 (e4m3), which is half as large",
            yaml=("kv_cache_config.dtype",),
            refuse=other_than(CACHE_DTYPES, "pages can not hold this type"),
        ),
        row(
            s, "index_kv_dtype", TEXT, "auto", "engine.index_kv_dtype",
            "type of the indexer's keys in pages (M3): the model's, or fp8 (e4m3)",
            refuse=other_than(CACHE_DTYPES, "pages can not hold this type"),
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
