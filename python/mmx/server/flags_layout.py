"""Flags of the device layout and of the cache. What is not built is refused by name, what has no effect is
answered with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmx.config import CACHE_DTYPES
from mmx.server.flag_kinds import BOOL, FLOAT, INT, JSON, SIZE, TEXT, Flag, always, field, inert, row

Verdict = Callable[[Any], str | None]


def other_number(only: int, thing: str) -> Verdict:
    """Refuses all numbers but ``only``, with which nobody needs the thing that is not built."""
    return lambda value: f"{thing} is not built yet, only {only} is served" if value != only else None


def switched_on(thing: str) -> Verdict:
    return lambda value: f"{thing} is not built yet" if value else None


def other_than(allowed: tuple[str, ...], thing: str) -> Verdict:
    return lambda value: None if value in allowed else f"{thing}, only {' or '.join(allowed)} is served"


def layout() -> list[Flag]:
    return [
        field(
            "tensor_parallel_size", INT, "parallel", "ranks that share heads, columns and vocabulary",
            aliases=("tp_size",), short=("tp",),
        ),
        row(
            "pipeline_parallel_size", INT, 1, None, "only 1: pipeline parallelism is not built yet",
            aliases=("pp_size",), short=("pp",), refuse=other_number(1, "pipeline parallelism"),
        ),
        field(
            "data_parallel_size", INT, "parallel",
            "groups of ranks with requests and pages of their own, behind one server", aliases=("dp_size",),
            short=("dp",),
        ),
        field(
            "data_parallel_size_local", INT, "launch", "groups that this command starts; all by default",
            short=("dpl",),
        ),
        field(
            "data_parallel_start_rank", INT, "launch", "first group that this command starts", short=("dpr",),
        ),
        field(
            "data_parallel_address", TEXT, "launch", "where rank 0 waits for the groups of other commands",
            short=("dpa",),
        ),
        field(
            "data_parallel_rpc_port", INT, "launch", "port of that address; 29550 by default", short=("dpp",),
        ),
        inert("data_parallel_backend", TEXT, None, "mmx starts its ranks itself", short=("dpb",)),
        field("headless", BOOL, "launch", "start ranks without HTTP, for rank 0 elsewhere"),
        row(
            "api_server_count", INT, 1, None, "only 1: several HTTP processes are not built yet",
            refuse=other_number(1, "HTTP in several processes"),
        ),
        field(
            "enable_expert_parallel", BOOL, "parallel.expert_parallel",
            "deal experts out whole over all ranks; by default only where they can not be cut", short=("ep",),
        ),
        field(
            "moe_expert_parallel_size", INT, "parallel.expert_parallel_size",
            "ranges of experts; times --moe-tensor-parallel-size the ranks that share them",
            aliases=("ep_size",),
        ),
        field("moe_tensor_parallel_size", INT, "parallel", "slices of each expert"),
        row(
            "moe_cluster_parallel_size", INT, 1, None, "only 1: there are no expert clusters",
            refuse=other_number(1, "an expert cluster"),
        ),
        field(
            "enable_attention_dp", BOOL, "parallel.attention_dp",
            "the tensor-parallel ranks take requests of their own in attention and share the experts",
            aliases=("enable_dp_attention",),
        ),
        inert(
            "attention_dp_config", JSON, {},
            "requests go to where the least is to be done, ranks do not wait for each other",
            keys=("enable_balance", "timeout_iters", "batching_wait_iters"),
        ),
        field(
            "prefill_context_parallel_size", INT, "parallel", "ranks that compute parts of the same prompt",
            aliases=("context_parallel_size", "cp_size"), short=("pcp",),
        ),
        field(
            "decode_context_parallel_size", INT, "parallel",
            "of the tensor-parallel ranks so many hold the pages of a sequence by turns", short=("dcp",),
        ),
        inert(
            "cp_kv_cache_interleave_size", INT, None,
            "pages are dealt out one by one (--decode-context-parallel-size)",
        ),
        field(
            "all2all_backend", TEXT, "parallel",
            "alltoall sends tokens to the ranks of their experts only; auto and allgather send them to all",
            choices=("auto", "allgather", "alltoall"), aliases=("moe_a2a_backend",),
        ),
        row(
            "enable_eplb", BOOL, False, None, "only false: expert load balancing is not built yet",
            refuse=switched_on("expert load balancing"),
        ),
        field("nnodes", INT, "launch", "machines, each of which starts an equal part of the ranks"),
        field("node_rank", INT, "launch", "which of them this is; 0 has rank 0"),
        field("master_addr", TEXT, "launch", "where rank 0 waits for the others"),
        field(
            "master_port", INT, "launch",
            "port of that address; a free one, 29550 or the launcher's by default",
        ),
        field(
            "rendezvous_timeout", FLOAT, "parallel", "seconds until missing ranks end the start",
            aliases=("distributed_timeout_seconds",),
        ),
        field(
            "step_timeout", FLOAT, "parallel",
            "seconds after which a step of several ranks counts as hanging and ends the engine",
        ),
        inert("gpus_per_node", INT, None, "each rank takes the GPU of its local number"),
        inert(
            "enable_balance_scheduling", BOOL, False, "requests go to where the least is to be done",
            env=("VLLM_ASCEND_BALANCE_SCHEDULING",),
        ),
        field(
            "enable_sequence_parallel_norm", BOOL, "parallel.sequence_parallel_norm",
            "norms over slices of the tokens: two halves of an all-reduce around them",
            env=("VLLM_ASCEND_ENABLE_FLASHCOMM1",),
        ),
        field(
            "disable_custom_all_reduce", BOOL, "parallel",
            "sums of few tokens go through NCCL too, not through memory that GPUs of a host have mapped",
        ),
        field("enable_cpu_binding", BOOL, "launch.bind_cpus", "each local rank gets processors of its own"),
        inert(
            "enable_fused_mc2", INT, 0, "tokens reach the experts as --all2all-backend says",
            env=("VLLM_ASCEND_ENABLE_FUSED_MC2",),
        ),
    ]  # fmt: skip


POOL_SIZE = always(
    "the page pool is sized by the engine from the free memory; --kv-cache-memory-bytes sets it exactly"
)


def cache() -> list[Flag]:
    return [
        field(
            "gpu_memory_utilization", FLOAT, "engine",
            "share of the whole device that the engine may use; default: 0.92 of a GPU or of what is free",
            aliases=("device_memory_utilization",),
        ),
        field(
            "kv_cache_free_gpu_memory_fraction", FLOAT, "engine",
            "share of the memory left by weights, steps and graphs that the page pool takes",
            aliases=("free_gpu_memory_fraction",), yaml=("kv_cache_config.free_gpu_memory_fraction",),
        ),
        row(
            "kv_cache_max_tokens", SIZE, None, None,
            "accepted; the engine sizes the page pool, --kv-cache-memory-bytes sets it exactly",
            yaml=("kv_cache_config.max_tokens",), note=POOL_SIZE,
        ),
        field(
            "kv_cache_dtype", TEXT, "engine",
            "type of K and V in pages: the model's, or fp8 (e4m3), which is half as large",
            yaml=("kv_cache_config.dtype",), refuse=other_than(CACHE_DTYPES, "pages can not hold this type"),
        ),
        field(
            "index_kv_dtype", TEXT, "engine",
            "type of the indexer's keys in pages (M3): the model's, or fp8 (e4m3)",
            refuse=other_than(CACHE_DTYPES, "pages can not hold this type"),
        ),
        row(
            "block_size", INT, None, "checkpoint",
            "tokens of a page; must be what the checkpoint's attention uses (128)", aliases=("page_size",),
            yaml=("kv_cache_config.tokens_per_block",),
        ),
        row(
            "kv_offloading_size", FLOAT, 0.0, None, "only 0: cache pages are not moved to the host yet",
            yaml=("kv_cache_config.host_cache_size",),
            refuse=other_number(0, "moving cache pages to the host"),
        ),
        row(
            "block_reuse_policy", TEXT, "all", None, "only all: reuse per conversation is not built yet",
            yaml=("kv_cache_config.block_reuse_policy",),
            refuse=other_than(("all",), "reuse within one conversation is not built yet"),
        ),
        inert(
            "kv_event_buffer_max_size", INT, 0, "no cache events are published",
            yaml=("kv_cache_config.event_buffer_max_size",),
        ),
        inert(
            "use_kv_cache_manager_v2", BOOL, False, "there is one cache manager",
            yaml=("kv_cache_config.use_kv_cache_manager_v2",),
        ),
    ]  # fmt: skip
