"""``ServerConfig``: what the server was told, in groups by who reads it; built from the flag table."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from mmx.config import EngineConfig, ParallelConfig, Place
from mmx.launch import LaunchFlags
from mmx.server.flag_kinds import EXIT_CONFIG, FlagError
from mmx.server.flag_parser import Parsed
from mmx.server.flags import FLAGS
from mmx.server.flags_access import as_list
from mmx.server.flags_execution import ADDITIONAL, EAGER
from mmx.server.variables import variable_notes

SECRETS = ("api_key", "admin_api_key", "thinking_signature_key")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How the model is named, prompted and sampled by default."""

    served_names: tuple[str, ...]
    generation_config: str
    chat_template: str | None
    default_chat_template_kwargs: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Addresses, keys and limits; times in seconds."""

    host: str
    port: int
    api_keys: tuple[str, ...]
    api_key_file: str | None
    max_body_bytes: int
    overload_status: int
    request_timeout: float | None
    keep_alive_interval: float
    keep_alive_style: str
    shutdown_timeout: float
    disable_metrics: bool
    metrics_alias: str
    signature_key: str | None
    response_store_size: int


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Who may ask what: control keys, other origins, certificates."""

    admin_api_keys: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    allowed_methods: tuple[str, ...]
    allowed_headers: tuple[str, ...]
    allow_credentials: bool
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_ca_certs: str | None
    ssl_cert_reqs: str
    ssl_refresh: bool


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What answers look like."""

    stream_interval: int
    reasoning_parser: str
    tool_call_parser: str
    reasoning_output: str
    prompt_tokens_details: bool
    force_include_usage: bool
    tokens_as_ids: bool
    max_logprobs: int
    role: str
    unknown_fields: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What the user says about the checkpoint; compared with it before it is loaded."""

    quantization: str
    block_size: int | None
    sparse_attention: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is printed."""

    config_file: str | None
    options_file: str | None
    level: str
    format: str
    stats_interval: float
    disable_requests: bool
    profiler_dir: str | None
    profiler_with_stack: bool


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything the server process knows before it reads a checkpoint. ``notes`` go to the start log."""

    engine: EngineConfig
    parallel: ParallelConfig
    launch: LaunchFlags
    model: ModelSettings
    http: HttpSettings
    access: AccessSettings
    answer: AnswerSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    origins: dict[str, str]
    notes: tuple[str, ...]


def _require(ok: bool, name: str, expected: str, parsed: Parsed) -> None:
    if not ok:
        flag = FLAGS.flags[name]
        raise FlagError(f"{flag.spelling}: expected {expected}, got {parsed.values[name]!r}")


def load_config(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Settings of ``mmx serve ARGV``; FlagError with one sentence when something is not acceptable."""
    parsed = FLAGS.parse(argv, environ, ("extra_llm_api_options", "config"))
    values = parsed.values
    _require(0 <= values["port"] <= 65535, "port", "0 to 65535", parsed)
    _require(values["overload_status"] in (429, 503), "overload_status", "429 or 503", parsed)
    _require(1 <= values["stream_interval"] <= 1000, "stream_interval", "1 to 1000", parsed)
    _require(values["sse_keep_alive_interval"] > 0, "sse_keep_alive_interval", "more than 0", parsed)
    _require(values["shutdown_timeout"] >= 0, "shutdown_timeout", "0 or more", parsed)
    _require(values["response_store_size"] >= 0, "response_store_size", "0 or more", parsed)
    _require(values["max_body_bytes"] >= 1, "max_body_bytes", "1 or more", parsed)
    _require(
        0 <= values["max_logprobs"] <= FLAGS.flags["max_logprobs"].default, "max_logprobs", "0 to 20", parsed
    )
    _require(
        values["request_timeout"] is None or values["request_timeout"] > 0,
        "request_timeout",
        "more than 0",
        parsed,
    )
    queued = values["max_num_queued_reqs"]
    _require(queued is None or queued >= 0, "max_num_queued_reqs", "0 or more", parsed)
    if values["seed"] is None:
        values["seed"] = 0 if values["load_format"] == "dummy" else secrets.randbelow(1 << 31)
    if values["compilation_config"].get("cudagraph_mode") == EAGER:
        values["enforce_eager"] = True
        parsed.origins["enforce_eager"] = parsed.origins["compilation_config"]

    for key, name in ADDITIONAL.items():
        if key in values["additional_config"] and parsed.origins[name] == "default":
            values[name] = bool(values["additional_config"][key])
            parsed.origins[name] = parsed.origins["additional_config"]

    sparse = values["sparse_attention_config"]
    if "indexer_kv_dtype" in sparse and parsed.origins["index_kv_dtype"] == "default":
        values["index_kv_dtype"] = sparse["indexer_kv_dtype"]
        parsed.origins["index_kv_dtype"] = parsed.origins["sparse_attention_config"]

    for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        values[name] = as_list(values[name])
    groups: dict[str, dict[str, Any]] = {}
    for name, flag in FLAGS.flags.items():
        if flag.target:
            group, _, field = flag.target.partition(".")
            groups.setdefault(group, {})[field] = values[name]
    try:
        parallel = ParallelConfig(**groups["parallel"])
        engine = EngineConfig(**groups["engine"], parallel=parallel)
    except ValueError as exc:
        raise FlagError(str(exc), EXIT_CONFIG) from None
    return ServerConfig(
        engine=engine,
        parallel=parallel,
        launch=LaunchFlags(**groups["launch"]),
        model=ModelSettings(**groups["model"]),
        http=HttpSettings(**groups["http"]),
        access=AccessSettings(**groups["access"]),
        answer=AnswerSettings(**groups["answer"]),
        checkpoint=CheckpointSettings(**groups["checkpoint"]),
        log=LogSettings(**groups["log"]),
        origins=parsed.origins,
        notes=(*parsed.warnings, *variable_notes(environ)),
    )


def with_place(config: ServerConfig, place: Place) -> ServerConfig:
    """The configuration for the ranks that are started here, which print as the server does."""
    place = msgspec.structs.replace(place, log_level=config.log.level, log_format=config.log.format)
    return replace(config, engine=msgspec.structs.replace(config.engine, place=place))


def effective(config: ServerConfig) -> dict[str, dict[str, Any]]:
    """Every setting with its value and where that came from; keys are masked."""
    shown: dict[str, dict[str, Any]] = {}
    for name, origin in config.origins.items():
        flag = FLAGS.flags[name]
        if flag.target is None:
            continue
        group, _, field = flag.target.partition(".")
        value = getattr(getattr(config, group), field)
        shown[name] = {"value": "***" if name in SECRETS and value else value, "origin": origin}
    return shown


def describe(config: ServerConfig) -> list[str]:
    """One line for every setting that is not its default."""
    return [
        f"{FLAGS.flags[name].spelling} = {entry['value']} ({entry['origin']})"
        for name, entry in effective(config).items()
        if entry["origin"] != "default"
    ]
