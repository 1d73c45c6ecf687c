"""From the conversation or text of a request to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jinja2

from mmx.server.errors import ApiError, clip, invalid, missing
from mmx.server.model_front import ModelFront
from mmx.server.schemas import NO_FUNCTION, ChatRequest, CompletionRequest, Tool
from mmx.server.state import ServerState
from mmx.tokenizer import ChatTemplateError

T = TypeVar("T")

MAX_PROMPTS = 1024
# Below this many characters a prompt costs less than the way to a thread and back.
SMALL_TEXT = 2000


class Prompt(NamedTuple):
    """``text`` is what was tokenised, None if the client sent ids."""

    token_ids: list[int]
    text: str | None
    warnings: tuple[str, ...] = ()


async def in_pool(state: ServerState, work: Callable[[], T]) -> T:
    """Run text work beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(state.pool, work)


# ---- chat --------------------------------------------------------------------------------------------


async def chat_prompt(
    state: ServerState, front: ModelFront, body: dict[str, Any], options: dict[str, Any]
) -> Prompt:
    """Render ``body["messages"]`` (and tools) with the checkpoint's template."""
    _check_continuation(options)
    tools = body.get("tools") or None
    return await in_pool(state, partial(_render, state, front, body["messages"], tools, options))


def render_options(request: ChatRequest | Any, template_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``ChatTemplate.render`` that come from request fields."""
    if request.chat_template is not None:
        raise invalid("chat_template", "is not accepted from requests", "chat_template_not_allowed")
    last = request.messages[-1] if request.messages else None
    continues = bool(request.continue_final_message) or bool(last is not None and last.prefix)
    given = request.add_generation_prompt
    return {
        "add_generation_prompt": (not continues) if given is None else given,
        "continue_final_message": continues,
        "template_kwargs": template_kwargs,
    }


def _check_continuation(options: dict[str, Any]) -> None:
    if options["continue_final_message"] and options["add_generation_prompt"]:
        text = "continue_final_message and add_generation_prompt exclude each other"
        raise ApiError("unsupported_combination", text, "continue_final_message")


def _render(
    state: ServerState,
    front: ModelFront,
    messages: list[Any],
    tools: list[Any] | None,
    options: dict[str, Any],
) -> Prompt:
    try:
        rendered = front.template.render(messages, tools=tools, **options)
    except ChatTemplateError as error:
        raise template_error(error) from None
    except jinja2.TemplateError as error:
        raise ApiError(
            "chat_template_error", clip(f"the chat template failed: {error}", 200), "messages"
        ) from None
    _check_length(state, rendered.text, "messages")
    return Prompt(front.tokenizer.encode_rendered(rendered), rendered.text, rendered.warnings)


def _check_length(state: ServerState, text: str, param: str) -> None:
    """Refuse a text that can not fit however well it is tokenised, before work is spent on it."""
    _, ready, front = state.serving()
    if len(text) > ready.max_model_len * front.longest_token:
        raise ApiError(
            "context_length_exceeded",
            f"This model's maximum context length is {ready.max_model_len} tokens, but the prompt has "
            f"{len(text)} characters; shorten the prompt",
            param,
        )


def template_error(error: ChatTemplateError) -> ApiError:
    """The error a client gets for a conversation that can not be rendered."""
    text, param = clip(str(error), 240), error.param
    if error.code is not None:
        code = error.code
    elif "the chat template refuses" in text:
        code = "chat_template_error"
    elif param == "messages" and "at least one message" in text:
        code = "empty_array"
    elif param.endswith("tool_call_id") or "tool message" in text or "answers no call" in text:
        code, param = "tool_call_mismatch", param.removesuffix(".tool_call_id")
    else:
        code = "invalid_value"
    return ApiError(code, text, param)


def check_tools(tools: list[Tool] | None) -> None:
    """Names, duplicates and types of the tool definitions."""
    seen = set()
    for i, tool in enumerate(tools or ()):
        name, path = tool.function.name, f"tools[{i}].function.name"
        if tool.type != "function":
            problem = f"must be function, got {clip(tool.type)!r}"
            raise invalid(f"tools[{i}].type", problem, "unsupported_tool_type")
        if tool.function is NO_FUNCTION:
            raise missing(f"tools[{i}].function")
        if not 1 <= len(name) <= 64 or not all(c.isascii() and (c.isalnum() or c in "_.-:/") for c in name):
            raise invalid(path, f"must be 1 to 64 of a-z A-Z 0-9 _ . - : /, got {clip(name)!r}")
        if name in seen:
            raise invalid(path, f"{clip(name)!r} is given twice")
        seen.add(name)


# ---- plain text --------------------------------------------------------------------------------------


async def completion_prompts(
    state: ServerState, front: ModelFront, request: CompletionRequest
) -> list[Prompt]:
    """The prompts of a completions request: text, ids, or a list of either."""
    given = request.prompt
    if isinstance(given, str):
        prompts: list[Any] = [given]
    elif given and all(type(item) is int for item in given):
        prompts = [given]
    else:
        prompts = given
    if not prompts:
        raise invalid("prompt", "must not be empty", "empty_array")
    if len(prompts) > MAX_PROMPTS:
        raise invalid("prompt", f"takes at most {MAX_PROMPTS} prompts, got {len(prompts)}")
    add = True if request.add_special_tokens is None else request.add_special_tokens
    found = [_checked(prompt, i, len(prompts)) for i, prompt in enumerate(prompts)]
    texts = [text for text in found if isinstance(text, str)]
    for text in texts:
        _check_length(state, text, "prompt")
    work = partial(_encode_all, front, texts, add)
    encoded = iter(work() if sum(map(len, texts)) <= SMALL_TEXT else await in_pool(state, work))
    result = [Prompt(next(encoded), p) if isinstance(p, str) else Prompt(p, None) for p in found]
    for i, prompt in enumerate(result):
        if not prompt.token_ids:
            raise invalid(_prompt_path(i, len(result)), "must hold at least one token")
    return result


def _encode_all(front: ModelFront, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    return [front.tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]


def _checked(prompt: Any, index: int, count: int) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(item) is int for item in prompt):
        return prompt
    raise invalid(_prompt_path(index, count), "must be a string or a list of token ids", "invalid_type")


def _prompt_path(index: int, count: int) -> str:
    return "prompt" if count == 1 else f"prompt[{index}]"


def check_ids(ids: list[int], vocab_size: int, param: str) -> None:
    """400 unless every id is one of the vocabulary."""
    if not ids:
        raise invalid(param, "must not be empty", "empty_array")
    wrong = next((i for i in (min(ids), max(ids)) if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise invalid(param, f"must hold token ids below {vocab_size}, got {clip(wrong)}")


def truncate(ids: list[int], keep: int | None, side: str | None, room: int) -> list[int]:
    """The prompt cut to ``truncate_prompt_tokens`` tokens (-1: to what fits), by default at its start."""
    if side is not None and side not in ("left", "right"):
        raise invalid("truncation_side", f"must be left or right, got {clip(side)!r}")
    if keep is None:
        return ids
    if keep != -1 and keep < 1:
        raise invalid("truncate_prompt_tokens", f"must be -1 or at least 1, got {clip(keep)}")
    count = max(room, 1) if keep == -1 else keep
    return ids[:count] if side == "right" else ids[-count:]
