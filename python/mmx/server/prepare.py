"""What chat and plain completions do alike before the engine is asked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from mmx.protocol import Constraint
from mmx.server.body import read_body
from mmx.server.decode import decode_object, decode_request
from mmx.server.errors import clip, invalid
from mmx.server.generation import Job
from mmx.server.output import MakeReader
from mmx.server.prompts import Prompt, check_ids, in_pool, truncate
from mmx.server.sampling import answer_limit, requested_max_tokens, sampling_params
from mmx.server.schemas import Generate
from mmx.server.state import REQUEST_ID, STATE, ServerState

T = TypeVar("T", bound=Generate)

# From this size on a body is decoded beside the event loop.
LARGE_BODY = 1 << 20


def new_id(prefix: str) -> str:
    """``prefix`` and 28 characters from [0-9a-f]."""
    return prefix + secrets.token_hex(14)


@dataclass
class Incoming:
    """A decoded request with what its answer repeats. ``warnings`` end up in ``mmx.warnings``."""

    state: ServerState
    request_id: str
    model: str
    body: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    def extension(self, params: Any, thinking_mode: str | None) -> dict[str, Any]:
        """The ``mmx`` member of an answer."""
        sampling = {
            name: getattr(params, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens")
        }
        extension: dict[str, Any] = {"warnings": self.warnings, "sampling": sampling}
        if thinking_mode is not None:
            extension["thinking_mode"] = thinking_mode
        return extension


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object that a request brings; 503 before it is read when the server can not work."""
    state = request.app[STATE]
    state.serving()
    data = await read_body(request, state.config.http.max_body_bytes)
    if len(data) < LARGE_BODY:
        return decode_object(data)
    return await in_pool(state, partial(decode_object, data))


async def receive(request: web.Request, kind: type[T], refused: dict[str, str]) -> tuple[Incoming, T]:
    """Read, decode and check everything that does not depend on the prompt."""
    body = await read_object(request)
    parsed, unknown = decode_request(body, kind, refused)
    return accept(request.app[STATE], body, parsed, unknown), parsed


def accept(state: ServerState, body: dict[str, Any], parsed: Generate, unknown: list[str]) -> Incoming:
    """Name, id and unknown fields of a decoded request."""
    name = state.answered_name(parsed.model)
    request_id = _given_id(parsed) or REQUEST_ID.get()
    REQUEST_ID.set(request_id)
    incoming = Incoming(state, request_id, name, body)
    if unknown and state.config.answer.unknown_fields == "error":
        raise invalid(unknown[0], "is not a field of this request", "unknown_parameter")
    if unknown and state.config.answer.unknown_fields == "warn":
        incoming.warnings += [f"unknown field {name} was ignored" for name in sorted(unknown)]
    if parsed.stream_options is not None and not parsed.stream:
        raise invalid("stream_options", "needs stream to be true")
    return incoming


def _given_id(parsed: Generate) -> str | None:
    for name in ("request_id", "rid"):
        value = getattr(parsed, name)
        if value is not None:
            _check_label(value, name)
            return str(value)
    return None


def _check_label(value: str, name: str) -> None:
    if not 1 <= len(value) <= 128 or not value.isprintable() or not value.isascii():
        raise invalid(name, "must have 1 to 128 printable ASCII characters")


def _deadline(request: web.Request, parsed: Generate, state: ServerState) -> float | None:
    header = request.headers.get("x-request-timeout")
    value, name = parsed.timeout, "timeout"
    if value is None and header is not None:
        name = "x-request-timeout"
        try:
            value = float(header)
        except ValueError:
            raise invalid(name, f"must be seconds, got {clip(header)!r}") from None
    if value is None:
        return state.config.http.request_timeout
    if not 0 < value < 1e9:
        raise invalid(name, f"must be above 0 and below 1e9 seconds, got {value:g}")
    return value


def build_job(
    request: web.Request,
    incoming: Incoming,
    parsed: Generate,
    prompts: list[Prompt],
    prompt_field: str,
    make_reader: MakeReader,
    constraint: Constraint | None,
) -> Job:
    """Check prompts and sampling against the engine's limits."""
    state = incoming.state
    _, ready, front = state.serving()
    _, asked = requested_max_tokens(parsed)
    ids, params = [], []
    kv_tokens = ready.num_blocks * ready.block_size
    room = min(ready.max_model_len, kv_tokens) - (asked or 1)
    interval = parsed.stream_interval
    if interval is not None and not 1 <= interval <= 1000:
        raise invalid("stream_interval", f"must be 1 to 1000, got {clip(interval)}")
    salt = parsed.cache_salt or parsed.extra_key or ""
    if salt or parsed.cache_salt == "" or parsed.extra_key == "":
        _check_label(salt, "cache_salt" if parsed.cache_salt is not None else "extra_key")
    for prompt in prompts:
        check_ids(prompt.token_ids, ready.vocab_size, prompt_field)
        tokens = truncate(prompt.token_ids, parsed.truncate_prompt_tokens, parsed.truncation_side, room)
        limit = answer_limit(parsed, len(tokens), ready.max_model_len, kv_tokens, prompt_field)
        ids.append(tokens)
        params.append(
            sampling_params(
                parsed,
                defaults=front.defaults,
                vocab_size=ready.vocab_size,
                max_tokens=limit,
                max_logprobs=state.config.answer.max_logprobs,
            )
        )
    return Job(
        request_id=incoming.request_id,
        prompts=ids,
        params=params,
        asked_max_tokens=asked,
        deadline_s=_deadline(request, parsed, state),
        cache_salt=salt,
        skip_special_tokens=parsed.skip_special_tokens is not False,
        keep_token_ids=bool(parsed.return_token_ids),
        interval=(interval or state.config.answer.stream_interval) if parsed.stream else 1 << 30,
        make_reader=make_reader,
        constraint=constraint,
    )
