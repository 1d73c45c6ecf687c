"""Flags of how steps are executed, of drafts and of the checkpoint's number format."""

from __future__ import annotations

from typing import Any

import msgspec

from mmx.config import CACHE_DTYPES, EngineConfig
from mmx.server.flag_kinds import BOOL, INT, JSON, TEXT, Flag, row
from mmx.server.flags_layout import always, other_than, switched_on

_ENGINE = {f.name: f.default for f in msgspec.structs.fields(EngineConfig)}
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
    s = "Execution"
    return [
        row(
            s, "quantization", TEXT, "auto", "checkpoint.quantization",
            "must agree with the checkpoint: fp8 (blocks of 128 x 128), ascend (int8; widened when loaded)",
            short=("q",),
            refuse=other_than(("auto", "fp8", "ascend"), "weights in this number format can not be read yet"),
        ),
        row(
            s, "dequantize_weights", BOOL, _ENGINE["dequantize_weights"], "engine.dequantize_weights",
            "multiply fp8 weights out when they are loaded; always so where the device has no fp8",
        ),
        row(
            s, "compilation_config", JSON, {}, None,
            "cudagraph_mode NONE = --enforce-eager, other modes replay decode steps; other keys: no effect",
            short=("cc",), refuse=_graph_mode, note=_graph_note,
        ),
        row(
            s, "cuda_graph_padding", BOOL, True, None, "accepted; decode graphs are always padded",
            yaml=("cuda_graph_config.enable_padding",), note=always("decode graphs are always padded"),
        ),
        row(
            s, "max_cudagraph_capture_size", INT, None, None, "accepted; graphs reach up to --max-num-seqs",
            yaml=("cuda_graph_config.max_batch_size",), note=always("graphs reach up to --max-num-seqs"),
        ),
        row(
            s, "cudagraph_capture_sizes", INT, (), None, "accepted; mmx chooses the sizes of its graphs",
            many=True, yaml=("cuda_graph_config.batch_sizes",),
            note=always("mmx chooses the sizes of its graphs"),
        ),
        row(
            s, "torch_compile_config", JSON, {}, None, "accepted; nothing is compiled when the server starts",
            note=always("nothing is compiled when the server starts"),
        ),
        row(
            s, "additional_config", JSON, {}, None,
            "enable_cpu_binding and enable_flashcomm1 = their flags; other keys: no effect",
            note=_without_effect,
        ),
        row(
            s, "speculative_config", JSON, {}, None,
            "accepted; drafts are not used yet, answers are the same",
            short=("sc",), keys=DRAFT_KEYS,
            note=always("drafts are not used yet; answers are the same, each step gives one token"),
        ),
        row(
            s, "sparse_attention_config", JSON, {}, "checkpoint.sparse_attention",
            "M3 only; must say what the checkpoint says", keys=SPARSE_KEYS, refuse=_sparse,
        ),
        row(
            s, "moe_config", JSON, {}, None, "accepted; each device has its kernels",
            keys=("backend", "use_low_precision_moe_combine", "load_balancer", "max_num_tokens"),
            note=always("each device has its own MoE kernels, nothing can be chosen"),
        ),
        row(
            s, "scheduler_config", JSON, {}, None, "MAX_UTILIZATION and fcfs, which is what mmx does",
            keys=(
                "capacity_scheduler_policy", "waiting_queue_policy", "context_chunking_policy",
                "dynamic_batch_config",
            ),
            refuse=_scheduler,
        ),
        row(
            s, "async_scheduling", BOOL, _ENGINE["async_scheduling"], "engine.async_scheduling",
            "plan a step while the one before it runs (devices that work on their own)",
            negations=("disable_overlap_scheduler", "disable_overlap_schedule"),
        ),
        row(
            s, "enable_autotuner", BOOL, False, None, "accepted; kernels are chosen by shape, not tuned",
            note=always("kernels are chosen by shape, nothing is tuned when the server starts"),
        ),
        row(
            s, "num_postprocess_workers", INT, 0, None, "accepted; text is made in the server process",
            note=always("text is made in the server process"),
        ),
        row(
            s, "print_iter_log", BOOL, False, None, "accepted; --log-stats-interval prints the load",
            note=always("--log-stats-interval prints the load"),
        ),
        row(
            s, "return_perf_metrics", BOOL, False, None, "accepted; /metrics has the times",
            note=always("/metrics has the times"),
        ),
        row(
            s, "enable_iter_perf_stats", BOOL, False, None, "accepted; /metrics has the times",
            note=always("/metrics has the times"),
        ),
        row(
            s, "guided_decoding_backend", TEXT, "auto", None, "accepted; grammars run on llguidance",
            choices=("auto", "llguidance", "xgrammar"), note=always("grammars run on llguidance"),
        ),
        row(
            s, "structured_outputs_config", JSON, {}, None, "accepted; grammars run on llguidance",
            keys=("backend", "disable_fallback", "reasoning_parser"),
            note=always("grammars run on llguidance"),
        ),
        row(
            s, "model_loader_extra_config", JSON, {}, None, "accepted; weights are read in mmx's own way",
            note=always("weights are read in mmx's own way"),
        ),
        row(
            s, "kv_transfer_config", JSON, {}, None, "refused: separate prefill and decode are not built yet",
            refuse=switched_on("serving prefill and decode from separate processes"),
        ),
        row(
            s, "cache_transceiver_config", JSON, {}, None,
            "refused: separate prefill and decode are not built yet",
            refuse=switched_on("serving prefill and decode from separate processes"),
        ),
    ]  # fmt: skip
