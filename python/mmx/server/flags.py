"""The one table of the server's settings; command line, environment, YAML and help come from it."""

from __future__ import annotations

import msgspec

from mmx.config import MAX_LOGPROBS, EngineConfig
from mmx.server.flag_kinds import BOOL, FLOAT, INT, JSON, SIZE, TEXT, Flag, row
from mmx.server.flag_parser import FlagTable
from mmx.server.flag_yaml import preset_names
from mmx.server.flags_access import access
from mmx.server.flags_execution import execution
from mmx.server.flags_layout import cache, layout

_ENGINE = {f.name: f.default for f in msgspec.structs.fields(EngineConfig)}


def _model() -> list[Flag]:
    s = "Model"
    return [
        row(
            s, "model", TEXT, "", "engine.model",
            "checkpoint folder, or an id in the local hub cache; nothing = the embedded demo model",
            aliases=("model_path",),
        ),
        row(
            s, "served_model_name", TEXT, (), "model.served_names",
            "names that requests may ask for; the first one is echoed", many=True,
        ),
        row(
            s, "device", TEXT, _ENGINE["device"], "engine.device", "where the model runs",
            choices=("auto", "cpu", "cuda", "npu"),
        ),
        row(
            s, "dtype", TEXT, _ENGINE["dtype"], "engine.dtype", "type of the arithmetic; float32 is exact",
            choices=("auto", "bfloat16", "float32"),
        ),
        row(
            s, "load_format", TEXT, _ENGINE["load_format"], "engine.load_format",
            "dummy = random weights from --seed", choices=("auto", "safetensors", "dummy"),
        ),
        row(
            s, "max_model_len", SIZE, None, "engine.max_model_len",
            "longest prompt plus answer in tokens (also 128k, 1M); default: what fits",
            aliases=("max_seq_len", "context_length"),
        ),
        row(
            s, "generation_config", TEXT, "auto", "model.generation_config",
            "auto = sampling defaults from the checkpoint's generation_config.json", choices=("auto", "none"),
        ),
        row(
            s, "chat_template", TEXT, None, "model.chat_template",
            "Jinja file or text instead of the checkpoint's chat template",
        ),
        row(
            s, "default_chat_template_kwargs", JSON, {}, "model.default_chat_template_kwargs",
            "template variables under those of a request",
        ),
        row(s, "trust_remote_code", BOOL, False, None, "accepted; nothing of a checkpoint is executed"),
    ]  # fmt: skip


def _scheduling() -> list[Flag]:
    s = "Memory and scheduling"
    return [
        row(
            s, "max_num_seqs", INT, _ENGINE["max_num_seqs"], "engine.max_num_seqs", "sequences in one step",
            aliases=("max_batch_size", "max_running_requests"),
        ),
        row(
            s, "max_num_batched_tokens", SIZE, _ENGINE["max_num_batched_tokens"],
            "engine.max_num_batched_tokens", "tokens in one step",
            aliases=("max_num_tokens", "chunked_prefill_size"),
        ),
        row(
            s, "max_num_queued_reqs", INT, None, "engine.max_num_queued_reqs",
            "waiting sequences beyond which requests get 429; default: 4 x --max-num-seqs",
        ),
        row(
            s, "enable_prefix_caching", BOOL, _ENGINE["enable_prefix_caching"],
            "engine.enable_prefix_caching", "reuse pages of equal prompt beginnings",
            negations=("disable_radix_cache",), yaml=("kv_cache_config.enable_block_reuse",),
        ),
        row(
            s, "enforce_eager", BOOL, _ENGINE["enforce_eager"], "engine.enforce_eager",
            "launch every kernel of a decode step on its own instead of replaying a device graph",
            yaml_null=("cuda_graph_config",),
        ),
        row(
            s, "kv_cache_memory_bytes", SIZE, None, "engine.kv_cache_bytes",
            "size of the page pool; default: derived from the free memory",
        ),
        row(
            s, "seed", INT, None, "engine.seed",
            "start of all randomness; default: random and printed, 0 with --load-format dummy",
            aliases=("random_seed",),
        ),
        row(
            s, "deterministic", BOOL, _ENGINE["deterministic"], "engine.deterministic",
            "the same tokens in every batch on a GPU too: fixed orders of addition, slower prefill",
            aliases=("enable_deterministic_inference",),
        ),
        row(
            s, "stream_interval", INT, 1, "answer.stream_interval",
            "tokens per event of a stream; the first and the last go out at once",
        ),
        row(s, "enable_chunked_prefill", BOOL, True, None, "accepted; prefill is always chunked"),
    ]  # fmt: skip


def _front_end() -> list[Flag]:
    s = "Front end"
    return [
        row(s, "host", TEXT, "127.0.0.1", "http.host", "address to listen on"),
        row(s, "port", INT, 8000, "http.port", "port to listen on; 0 = any free one, printed"),
        row(
            s, "max_body_bytes", SIZE, 256 << 20, "http.max_body_bytes", "larger request bodies get 413",
        ),
        row(
            s, "overload_status", INT, 429, "http.overload_status",
            "status when the queue is full (429 or 503)",
        ),
        row(
            s, "request_timeout", FLOAT, None, "http.request_timeout",
            "deadline in seconds for requests that bring none",
        ),
        row(
            s, "sse_keep_alive_interval", FLOAT, 5.0, "http.keep_alive_interval",
            "seconds of silence after which a stream gets a sign of life",
        ),
        row(
            s, "response_store_size", INT, 1000, "http.response_store_size",
            "responses of /v1/responses kept for an hour in memory; 0 keeps none",
        ),
        row(
            s, "thinking_signature_key", TEXT, None, "http.signature_key",
            "secret that signs thinking in /v1/messages, equal on all replicas; default: random",
        ),
        row(
            s, "sse_keep_alive_style", TEXT, "newline", "http.keep_alive_style", "form of the sign of life",
            choices=("newline", "comment"),
        ),
        row(
            s, "shutdown_timeout", FLOAT, 30.0, "http.shutdown_timeout",
            "seconds that open requests get to finish after SIGTERM",
        ),
        row(
            s, "disable_metrics", BOOL, False, "http.disable_metrics", "do not serve /metrics",
        ),
        row(
            s, "metrics_alias", TEXT, "vllm", "http.metrics_alias", "second set of metric names",
            choices=("vllm", "none"),
        ),
    ]  # fmt: skip


def _answers() -> list[Flag]:
    s = "Answers"
    return [
        row(
            s, "reasoning_parser", TEXT, "auto", "answer.reasoning_parser",
            "how thinking is told from content; auto = by the checkpoint",
            choices=(
                "auto", "none", "minimax_m2", "minimax_m2_append_think", "minimax_m3",
                "minimax", "minimax-append-think", "minimax-m2", "minimax-m3",
            ),
        ),
        row(
            s, "tool_call_parser", TEXT, "auto", "answer.tool_call_parser",
            "how tool calls are read; auto = by the checkpoint", aliases=("tool_parser",),
            choices=("auto", "none", "minimax_m2", "minimax_m3", "minimax-m2", "minimax-m3"),
        ),
        row(s, "enable_auto_tool_choice", BOOL, True, None, "accepted; always on"),
        row(
            s, "reasoning_output", TEXT, "both", "answer.reasoning_output", "name of the reasoning field",
            choices=("both", "reasoning", "reasoning_content"),
        ),
        row(
            s, "enable_prompt_tokens_details", BOOL, True, "answer.prompt_tokens_details",
            "report cached prompt tokens in usage",
        ),
        row(
            s, "enable_force_include_usage", BOOL, False, "answer.force_include_usage",
            "send usage at the end of every stream",
        ),
        row(
            s, "return_tokens_as_token_ids", BOOL, False, "answer.tokens_as_ids",
            "logprobs show token_id:N instead of text",
        ),
        row(
            s, "max_logprobs", INT, MAX_LOGPROBS, "answer.max_logprobs", "most alternatives per token",
        ),
        row(s, "response_role", TEXT, "assistant", "answer.role", "role of chat answers"),
        row(
            s, "unknown_fields", TEXT, "warn", "answer.unknown_fields",
            "request fields that mmx does not know: named in mmx.warnings, ignored, or refused",
            choices=("warn", "ignore", "error"),
        ),
    ]  # fmt: skip


def _general() -> list[Flag]:
    s = "General"
    return [
        row(
            s, "config", TEXT, None, "log.config_file",
            "YAML file with settings, or one of the presets that come with mmx: " + ", ".join(preset_names()),
        ),
        row(
            s, "extra_llm_api_options", TEXT, None, "log.options_file",
            "as --config; where both name a file this one wins, and a file wins over a preset",
        ),
        row(
            s, "log_level", TEXT, "info", "log.level", "least severe line to print",
            choices=("debug", "info", "warning", "error"),
        ),
        row(s, "log_format", TEXT, "text", "log.format", "form of log lines", choices=("text", "json")),
        row(
            s, "log_stats_interval", FLOAT, 10.0, "log.stats_interval",
            "seconds between lines about the load while there is any; 0 = none",
        ),
        row(
            s, "disable_log_requests", BOOL, False, "log.disable_requests", "no line per request",
        ),
        row(
            s, "profiler_dir", TEXT, None, "log.profiler_dir",
            "folder for the records of /start_profile; default: it answers 404",
            env=("VLLM_TORCH_PROFILER_DIR",),
        ),
        row(
            s, "profiler_with_stack", BOOL, False, "log.profiler_with_stack", "record Python stacks too",
            env=("VLLM_TORCH_PROFILER_WITH_STACK",),
        ),
        row(s, "backend", TEXT, None, None, "accepted", yaml=("backend",)),
        row(s, "disable_log_stats", BOOL, False, None, "accepted"),
        row(s, "max_beam_width", INT, 1, None, "accepted"),
        row(s, "distributed_executor_backend", TEXT, None, None, "accepted"),
        row(s, "disable_custom_all_reduce", BOOL, False, None, "accepted"),
        row(s, "use_ray", BOOL, False, None, "accepted"),
        row(s, "swap_space", FLOAT, None, None, "accepted"),
        row(s, "enable_flashinfer_autotune", BOOL, False, None, "accepted"),
    ]  # fmt: skip


FLAGS = FlagTable(
    [
        *_model(),
        *layout(),
        *_scheduling(),
        *cache(),
        *execution(),
        *_front_end(),
        *access(),
        *_answers(),
        *_general(),
    ],
    positional="model",
)
