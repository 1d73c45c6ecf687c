"""Flags of how steps are executed, of drafts and of the checkpoint's number format."""

from __future__ import annotations

from typing import Any

from mmx.config import CACHE_DTYPES
from mmx.server.flag_kinds import BOOL, INT, JSON, TEXT, Flag, field, inert, row
from mmx.server.flags_layout import other_than, switched_on

EAGER = "NONE"
GRAPH_MODES = (EAGER, "FULL_DECODE_ONLY", "FULL", "PIECEWISE", "FULL_AND_PIECEWISE")
SPARSE_KEYS = (
    "algorithm", "implementation", "indexer_kv_dtype", "sparse_disable_index_value",
    "fuse_qkv_index_projection", "sparse_num_index_heads", "sparse_index_dim", "sparse_block_size",
    "sparse_topk_blocks", "sparse_init_blocks", "sparse_local_blocks", "sparse_score_type",
    "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
# Keys of additional_config that are flags of mmx.
ADDITIONAL = {
    "enable_cpu_binding": "enable_cpu_binding",
    "enable_flashcomm1": "enable_sequence_parallel_norm",
}
DRAFT_KEYS = (
    "method", "model", "num_speculative_tokens", "enforce_eager", "rejection_sample_method",
    "synthetic_acceptance_length", "attention_backend", "draft_tensor_parallel_size", "prompt_lookup_max",
    "prompt_lookup_min", "decoding_type", "max_draft_len", "speculative_model", "speculative_model_dir",
)  # fmt: skip


def _graph_mode(value: dict[str, Any]) -> str | None:
    mode = value.get("cudagraph_mode")
    return (
        None
        if mode is None or mode in GRAPH_MODES
        else f"cudagraph_mode must be one of {', '.join(GRAPH_MODES)}"
    )


def _graph_note(value: dict[str, Any]) -> str | None:
    ignored = [key for key in value if key != "cudagraph_mode"]
    said = []
    if value.get("cudagraph_mode") in ("FULL", "PIECEWISE", "FULL_AND_PIECEWISE"):
        said.append("only decode steps are replayed as graphs, as with FULL_DECODE_ONLY")
    if ignored:
        said.append(
            f"{', '.join(ignored)} has no effect: decode graphs of all sizes up to --max-num-seqs exist"
        )
    return "; ".join(said) or None


def _without_effect(value: dict[str, Any]) -> str | None:
    ignored = [key for key in value if key not in ADDITIONAL]
    return f"mmx has nothing for {', '.join(ignored)}" if ignored else None


def _scheduler(value: dict[str, Any]) -> str | None:
    if value.get("capacity_scheduler_policy", "MAX_UTILIZATION") != "MAX_UTILIZATION":
        return "reserving the whole output at admission is not built yet, only MAX_UTILIZATION is served"
    if value.get("waiting_queue_policy", "fcfs") != "fcfs":
        return "a queue by priority is not built yet, only fcfs is served"
    return None


def _sparse(value: dict[str, Any]) -> str | None:
    if value.get("algorithm", "minimax_m3") != "minimax_m3":
        return "algorithm must be minimax_m3"
    if value.get("indexer_kv_dtype", "auto") not in CACHE_DTYPES:
        return f"indexer_kv_dtype must be one of {', '.join(CACHE_DTYPES)}"
    if value.get("sparse_disable_index_value", True) is not True:
        return "sparse_disable_index_value must be true, as in the checkpoint"
    if value.get("sparse_score_type", "max") != "max":
        return "sparse_score_type must be max, as in the checkpoint"
    return None


def execution() -> list[Flag]:
    return [
        row(
            "quantization", TEXT, "auto", "checkpoint",
            "must agree with the checkpoint: fp8 (blocks of 128 x 128), ascend (int8; widened when loaded)",
            short=("q",),
            refuse=other_than(("auto", "fp8", "ascend"), "weights in this number format can not be read yet"),
        ),
        field(
            "dequantize_weights", BOOL, "engine",
            "multiply fp8 weights out when they are loaded; always so where the device has no fp8",
        ),
        row(
            "compilation_config", JSON, {}, None,
            "cudagraph_mode NONE = --enforce-eager, other modes replay decode steps; other keys: no effect",
            short=("cc",), refuse=_graph_mode, note=_graph_note,
        ),
        inert(
            "cuda_graph_padding", BOOL, True, "decode graphs are always padded",
            yaml=("cuda_graph_config.enable_padding",),
        ),
        inert(
            "max_cudagraph_capture_size", INT, None, "graphs reach up to --max-num-seqs",
            yaml=("cuda_graph_config.max_batch_size",),
        ),
        inert(
            "cudagraph_capture_sizes", INT, (), "mmx chooses the sizes of its graphs", many=True,
            yaml=("cuda_graph_config.batch_sizes",),
        ),
        inert("torch_compile_config", JSON, {}, "nothing is compiled when the server starts"),
        row(
            "additional_config", JSON, {}, None,
            "enable_cpu_binding and enable_flashcomm1 = their flags; other keys: no effect",
            note=_without_effect,
        ),
        inert(
            "speculative_config", JSON, {},
            "drafts are not used yet; answers are the same, each step gives one token", short=("sc",),
            keys=DRAFT_KEYS,
        ),
        row(
            "sparse_attention_config", JSON, {}, "checkpoint.sparse_attention",
            "M3 only; must say what the checkpoint says", keys=SPARSE_KEYS, refuse=_sparse,
        ),
        inert(
            "moe_config", JSON, {}, "each device has its own MoE kernels, nothing can be chosen",
            keys=("backend", "use_low_precision_moe_combine", "load_balancer", "max_num_tokens"),
        ),
        row(
            "scheduler_config", JSON, {}, None, "MAX_UTILIZATION and fcfs, which is what mmx does",
            keys=(
                "capacity_scheduler_policy", "waiting_queue_policy", "context_chunking_policy",
                "dynamic_batch_config",
            ),
            refuse=_scheduler,
        ),
        field(
            "async_scheduling", BOOL, "engine",
            "plan a step while the one before it runs (devices that work on their own)",
            negations=("disable_overlap_scheduler", "disable_overlap_schedule"),
        ),
        inert(
            "enable_autotuner", BOOL, False,
            "kernels are chosen by shape, nothing is tuned when the server starts",
        ),
        inert("num_postprocess_workers", INT, 0, "text is made in the server process"),
        inert("print_iter_log", BOOL, False, "--log-stats-interval prints the load"),
        inert("return_perf_metrics", BOOL, False, "/metrics has the times"),
        inert("enable_iter_perf_stats", BOOL, False, "/metrics has the times"),
        inert(
            "guided_decoding_backend", TEXT, "auto", "grammars run on llguidance",
            choices=("auto", "llguidance", "xgrammar"),
        ),
        inert(
            "structured_outputs_config", JSON, {}, "grammars run on llguidance",
            keys=("backend", "disable_fallback", "reasoning_parser"),
        ),
        inert("model_loader_extra_config", JSON, {}, "weights are read in mmx's own way"),
        row(
            "kv_transfer_config", JSON, {}, None, "refused: separate prefill and decode are not built yet",
            refuse=switched_on("serving prefill and decode from separate processes"),
        ),
        row(
            "cache_transceiver_config", JSON, {}, None,
            "refused: separate prefill and decode are not built yet",
            refuse=switched_on("serving prefill and decode from separate processes"),
        ),
    ]  # fmt: skip
