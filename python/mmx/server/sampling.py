"""From request fields and the checkpoint's defaults to ``SamplingParams``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmx.config import SamplingParams
from mmx.server.errors import ApiError, clip, invalid, unsupported
from mmx.server.schemas import ChatRequest, CompletionRequest, Generate

MAX_STOP_STRINGS = 16
COMPLETION_DEFAULT_TOKENS = 16
# Fields that go into SamplingParams as they come.
_PLAIN = (
    *("min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "ignore_eos"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "include_stop_str_in_output"),
)
# Fields of generation_config.json that stand in for what a client omits.
_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """Sampling fields of the checkpoint's ``generation_config.json``; empty without that file."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    defaults = {name: values[name] for name in _FROM_CHECKPOINT if values.get(name) is not None}
    if values.get("do_sample") is False:
        defaults["temperature"] = 0.0
    SamplingParams(**defaults)
    return defaults


def _refuse_unsupported(request: Generate) -> None:
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise unsupported("best_of", "only best_of equal to n")
    if request.use_beam_search:
        raise unsupported("use_beam_search", "answers are sampled")
    if request.priority:
        raise unsupported("priority", "the scheduling policy is first come, first served")


def _stop(request: Generate) -> tuple[str, ...]:
    stop = request.stop
    strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid("stop", f"takes at most {MAX_STOP_STRINGS} strings, got {len(strings)}")
    return strings


def _logit_bias(request: Generate, vocab_size: int) -> dict[int, float]:
    bias = {}
    for key, value in (request.logit_bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocab_size:
            raise invalid("logit_bias", f"keys must be token ids below {vocab_size}, got {clip(key)!r}")
        bias[int(key)] = value
    return bias


def _stop_token_ids(request: Generate, vocab_size: int) -> tuple[int, ...]:
    ids = tuple(request.stop_token_ids or ())
    if any(not 0 <= i < vocab_size for i in ids):
        raise invalid("stop_token_ids", f"must be token ids below {vocab_size}")
    return ids


def _logprobs(request: Generate, limit: int) -> int | None:
    if isinstance(request, ChatRequest):
        top = request.top_logprobs
        if top and not request.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        if top is not None and not 0 <= top <= limit:
            raise invalid("top_logprobs", f"must be 0 to {limit}, got {clip(top)}")
        return (top or 0) if request.logprobs else None
    assert isinstance(request, CompletionRequest)
    if request.logprobs is not None and not 0 <= request.logprobs <= limit:
        raise invalid("logprobs", f"must be 0 to {limit}, got {clip(request.logprobs)}")
    return request.logprobs


def _prompt_logprobs(request: Generate, limit: int) -> int | None:
    count = request.prompt_logprobs
    if count is not None and not 0 <= count <= limit:
        raise invalid("prompt_logprobs", f"must be 0 to {limit}, got {clip(count)}")
    if count is not None and request.stream:
        raise invalid("prompt_logprobs", "needs an answer without stream", "unsupported_combination")
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        if request.stream:
            raise invalid("echo", "with logprobs excludes stream", "unsupported_combination")
        return max(count or 0, request.logprobs)
    return count


def sampling_params(
    request: Generate, *, defaults: dict[str, Any], vocab_size: int, max_tokens: int, max_logprobs: int
) -> SamplingParams:
    """How each of the ``n`` sequences is sampled. ``max_tokens`` is the limit already derived from the
    request and the context. ApiError names the field that is out of range."""
    _refuse_unsupported(request)
    given = {name: value for name in _PLAIN if (value := getattr(request, name)) is not None}
    try:
        params = SamplingParams(
            **{**defaults, **given},
            max_tokens=max_tokens,
            stop=_stop(request),
            stop_token_ids=_stop_token_ids(request, vocab_size),
            logit_bias=_logit_bias(request, vocab_size),
            logprobs=_logprobs(request, max_logprobs),
            prompt_logprobs=_prompt_logprobs(request, max_logprobs),
        )
    except ValueError as exc:
        raise ApiError("invalid_value", clip(str(exc), 200), str(exc).split(" ", 1)[0]) from None
    if params.n > 1 and params.greedy:
        raise invalid("n", "above 1 needs a temperature above 0", "unsupported_combination")
    return params


def requested_max_tokens(request: Generate) -> tuple[str, int | None]:
    """(name of the field, its value) that limits the answer."""
    name, value = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        name, value = "max_completion_tokens", request.max_completion_tokens
    least = 0 if isinstance(request, CompletionRequest) and request.echo else 1
    if value is not None and value < least:
        raise invalid(name, f"must be at least {least}, got {clip(value)}")
    return name, value


def answer_limit(
    request: Generate, prompt_len: int, max_model_len: int, kv_tokens: int, prompt_field: str
) -> int:
    """Tokens that are generated: what was asked for, one at least, or what fits into the context (16 for
    plain completions). ApiError when the prompt or the sum does not fit."""
    name, asked = requested_max_tokens(request)
    room = max_model_len - prompt_len
    limit = f"This model's maximum context length is {max_model_len} tokens"
    if room < 1:
        raise ApiError(
            "context_length_exceeded",
            f"{limit}, but the prompt has {prompt_len}; shorten the prompt",
            prompt_field,
        )
    if prompt_len + 1 > kv_tokens:
        raise ApiError(
            "prompt_exceeds_kv_capacity",
            f"the prompt has {prompt_len} tokens, more than the {kv_tokens} that the page pool holds",
            prompt_field,
        )
    if asked is None:
        return min(room, COMPLETION_DEFAULT_TOKENS) if isinstance(request, CompletionRequest) else room
    if asked > room:
        raise ApiError(
            "context_length_exceeded",
            f"{limit}, but {prompt_len} in the prompt and {clip(asked)} in {name} were asked for",
            name,
        )
    return max(asked, 1)
