"""The one table of the server's settings; command line, environment, YAML and help come from it."""

from __future__ import annotations

from dataclasses import replace

from mmx.config import MAX_LOGPROBS
from mmx.server.flag_kinds import BOOL, FLOAT, INT, JSON, SIZE, TEXT, Flag, field, row
from mmx.server.flag_parser import FlagTable
from mmx.server.flag_yaml import preset_names
from mmx.server.flags_access import access
from mmx.server.flags_execution import execution
from mmx.server.flags_layout import cache, layout


def _model() -> list[Flag]:
    return [
        row(
            "model", TEXT, "", "engine",
            "checkpoint folder, or an id in the local hub cache; nothing = the embedded demo model",
            aliases=("model_path",),
        ),
        row(
            "served_model_name", TEXT, (), "model.served_names",
            "names that requests may ask for; the first one is echoed", many=True,
        ),
        field("device", TEXT, "engine", "where the model runs", choices=("auto", "cpu", "cuda", "npu")),
        field(
            "dtype", TEXT, "engine", "type of the arithmetic; float32 is exact",
            choices=("auto", "bfloat16", "float32"),
        ),
        field(
            "load_format", TEXT, "engine", "dummy = random weights from --seed",
            choices=("auto", "safetensors", "dummy"),
        ),
        field(
            "max_model_len", SIZE, "engine",
            "longest prompt plus answer in tokens (also 128k, 1M); default: what fits",
            aliases=("max_seq_len", "context_length"),
        ),
        row(
            "generation_config", TEXT, "auto", "model",
            "auto = sampling defaults from the checkpoint's generation_config.json", choices=("auto", "none"),
        ),
        row(
            "chat_template", TEXT, None, "model",
            "Jinja file or text instead of the checkpoint's chat template",
        ),
        row("default_chat_template_kwargs", JSON, {}, "model", "template variables under those of a request"),
        row("trust_remote_code", BOOL, False, None, "accepted; nothing of a checkpoint is executed"),
    ]  # fmt: skip


def _scheduling() -> list[Flag]:
    return [
        field(
            "max_num_seqs", INT, "engine", "sequences in one step",
            aliases=("max_batch_size", "max_running_requests"),
        ),
        field(
            "max_num_batched_tokens", SIZE, "engine", "tokens in one step",
            aliases=("max_num_tokens", "chunked_prefill_size"),
        ),
        field(
            "max_num_queued_reqs", INT, "engine",
            "waiting sequences beyond which requests get 429; default: 4 x --max-num-seqs",
        ),
        field(
            "enable_prefix_caching", BOOL, "engine", "reuse pages of equal prompt beginnings",
            negations=("disable_radix_cache",), yaml=("kv_cache_config.enable_block_reuse",),
        ),
        field(
            "enforce_eager", BOOL, "engine",
            "launch every kernel of a decode step on its own instead of replaying a device graph",
            yaml_null=("cuda_graph_config",),
        ),
        field(
            "kv_cache_memory_bytes", SIZE, "engine.kv_cache_bytes",
            "size of the page pool; default: derived from the free memory",
        ),
        row(
            "seed", INT, None, "engine",
            "start of all randomness; default: random and printed, 0 with --load-format dummy",
            aliases=("random_seed",),
        ),
        field(
            "deterministic", BOOL, "engine",
            "the same tokens in every batch on a GPU too: fixed orders of addition, slower prefill",
            aliases=("enable_deterministic_inference",),
        ),
        row(
            "stream_interval", INT, 1, "answer",
            "tokens per event of a stream; the first and the last go out at once",
        ),
        row("enable_chunked_prefill", BOOL, True, None, "accepted; prefill is always chunked"),
    ]  # fmt: skip


def _front_end() -> list[Flag]:
    return [
        row("host", TEXT, "127.0.0.1", "http", "address to listen on"),
        row("port", INT, 8000, "http", "port to listen on; 0 = any free one, printed"),
        row("max_body_bytes", SIZE, 256 << 20, "http", "larger request bodies get 413"),
        row("overload_status", INT, 429, "http", "status when the queue is full (429 or 503)"),
        row("request_timeout", FLOAT, None, "http", "deadline in seconds for requests that bring none"),
        row(
            "sse_keep_alive_interval", FLOAT, 5.0, "http.keep_alive_interval",
            "seconds of silence after which a stream gets a sign of life",
        ),
        row(
            "response_store_size", INT, 1000, "http",
            "responses of /v1/responses kept for an hour in memory; 0 keeps none",
        ),
        row(
            "thinking_signature_key", TEXT, None, "http.signature_key",
            "secret that signs thinking in /v1/messages, equal on all replicas; default: random",
        ),
        row(
            "sse_keep_alive_style", TEXT, "newline", "http.keep_alive_style", "form of the sign of life",
            choices=("newline", "comment"),
        ),
        row(
            "shutdown_timeout", FLOAT, 30.0, "http", "seconds that open requests get to finish after SIGTERM",
        ),
        row("disable_metrics", BOOL, False, "http", "do not serve /metrics"),
        row("metrics_alias", TEXT, "vllm", "http", "second set of metric names", choices=("vllm", "none")),
    ]  # fmt: skip


def _answers() -> list[Flag]:
    return [
        row(
            "reasoning_parser", TEXT, "auto", "answer",
            "how thinking is told from content; auto = by the checkpoint",
            choices=(
                "auto", "none", "minimax_m2", "minimax_m2_append_think", "minimax_m3",
                "minimax", "minimax-append-think", "minimax-m2", "minimax-m3",
            ),
        ),
        row(
            "tool_call_parser", TEXT, "auto", "answer", "how tool calls are read; auto = by the checkpoint",
            aliases=("tool_parser",),
            choices=("auto", "none", "minimax_m2", "minimax_m3", "minimax-m2", "minimax-m3"),
        ),
        row("enable_auto_tool_choice", BOOL, True, None, "accepted; always on"),
        row(
            "reasoning_output", TEXT, "both", "answer", "name of the reasoning field",
            choices=("both", "reasoning", "reasoning_content"),
        ),
        row(
            "enable_prompt_tokens_details", BOOL, True, "answer.prompt_tokens_details",
            "report cached prompt tokens in usage",
        ),
        row(
            "enable_force_include_usage", BOOL, False, "answer.force_include_usage",
            "send usage at the end of every stream",
        ),
        row(
            "return_tokens_as_token_ids", BOOL, False, "answer.tokens_as_ids",
            "logprobs show token_id:N instead of text",
        ),
        row("max_logprobs", INT, MAX_LOGPROBS, "answer", "most alternatives per token"),
        row("response_role", TEXT, "assistant", "answer.role", "role of chat answers"),
        row(
            "unknown_fields", TEXT, "warn", "answer",
            "request fields that mmx does not know: named in mmx.warnings, ignored, or refused",
            choices=("warn", "ignore", "error"),
        ),
    ]  # fmt: skip


def _general() -> list[Flag]:
    return [
        row(
            "config", TEXT, None, "log.config_file",
            "YAML file with settings, or one of the presets that come with mmx: " + ", ".join(preset_names()),
        ),
        row(
            "extra_llm_api_options", TEXT, None, "log.options_file",
            "as --config; where both name a file this one wins, and a file wins over a preset",
        ),
        row(
            "log_level", TEXT, "info", "log.level", "least severe line to print",
            choices=("debug", "info", "warning", "error"),
        ),
        row("log_format", TEXT, "text", "log.format", "form of log lines", choices=("text", "json")),
        row(
            "log_stats_interval", FLOAT, 10.0, "log.stats_interval",
            "seconds between lines about the load while there is any; 0 = none",
        ),
        row("disable_log_requests", BOOL, False, "log.disable_requests", "no line per request"),
        row(
            "profiler_dir", TEXT, None, "log",
            "folder for the records of /start_profile; default: it answers 404",
            env=("VLLM_TORCH_PROFILER_DIR",),
        ),
        row(
            "profiler_with_stack", BOOL, False, "log", "record Python stacks too",
            env=("VLLM_TORCH_PROFILER_WITH_STACK",),
        ),
        row("backend", TEXT, None, None, "accepted", yaml=("backend",)),
        row("disable_log_stats", BOOL, False, None, "accepted"),
        row("max_beam_width", INT, 1, None, "accepted"),
        row("distributed_executor_backend", TEXT, None, None, "accepted"),
        row("use_ray", BOOL, False, None, "accepted"),
        row("swap_space", FLOAT, None, None, "accepted"),
        row("enable_flashinfer_autotune", BOOL, False, None, "accepted"),
    ]  # fmt: skip


_SECTIONS = {
    "Model": _model(),
    "Parallel layout": layout(),
    "Memory and scheduling": _scheduling(),
    "Cache": cache(),
    "Execution": execution(),
    "Front end": _front_end(),
    "Access": access(),
    "Answers": _answers(),
    "General": _general(),
}
FLAGS = FlagTable(
    [replace(flag, section=section) for section, flags in _SECTIONS.items() for flag in flags],
    positional="model",
)
