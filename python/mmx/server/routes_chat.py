"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from aiohttp import web

from mmx.server.answer import ChatWriter, Collected
from mmx.server.choice import Choice, Delta
from mmx.server.errors import ApiError, clip, unsupported
from mmx.server.generation import Generation
from mmx.server.logprobs import LogprobFormat
from mmx.server.output import prompt_tail
from mmx.server.prepare import Incoming, build_job, new_id, receive
from mmx.server.prompts import Prompt, chat_prompt, check_ids, check_tools, render_options
from mmx.server.schemas import REFUSED_IN_CHAT, ChatRequest
from mmx.server.serve import answer_json, answer_stream, stream_tail, usage_at_end
from mmx.server.thinking import ThinkingChoice, choose


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Render, generate, answer."""
    incoming, chat = await receive(request, ChatRequest, REFUSED_IN_CHAT)
    state = incoming.state
    _, ready, front = state.serving()
    _check(chat)
    thinking = choose(chat, state.config.model.default_chat_template_kwargs, front.family)
    incoming.warnings += thinking.warnings
    given_ids = chat.prompt_token_ids if chat.prompt_token_ids is not None else chat.input_ids
    if given_ids is not None:
        field = "prompt_token_ids" if chat.prompt_token_ids is not None else "input_ids"
        check_ids(given_ids, ready.vocab_size, field)
        prompt = Prompt(given_ids, None)
    else:
        field = "messages"
        kwargs = thinking.template_kwargs
        if chat.documents is not None:
            kwargs = {**kwargs, "documents": chat.documents}
        prompt = await chat_prompt(state, front, incoming.body, render_options(chat, kwargs))
    incoming.warnings += prompt.warnings
    tail = prompt.text if prompt.text is not None else prompt_tail(front.tokenizer, prompt.token_ids)
    make_reader = partial(
        front.output.reader,
        prompt=tail,
        thinking_mode=thinking.mode,
        tools=incoming.body.get("tools"),
        tool_choice=chat.tool_choice if isinstance(chat.tool_choice, str) else "auto",
        inline_thoughts=chat.reasoning_split is False or chat.separate_reasoning is False,
    )
    job = build_job(request, incoming, chat, [prompt], field, make_reader)
    async with Generation(state, job) as generation:
        if chat.stream:
            return await _stream(request, incoming, chat, generation, prompt)
        return await _whole(incoming, chat, generation, thinking, prompt)


def _check(chat: ChatRequest) -> None:
    """Fields that only chat has."""
    if not chat.messages:
        raise ApiError("empty_array", "messages must hold at least one message", "messages")
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise unsupported("modalities", 'only ["text"]')
    if chat.parallel_tool_calls is False and chat.tools:
        raise unsupported("parallel_tool_calls", "calls are not constrained by a grammar")
    check_tools(chat.tools)
    choice = chat.tool_choice
    if isinstance(choice, dict) or choice == "required":
        if not chat.tools:
            raise ApiError("missing_required_parameter", "tool_choice needs tools", "tools")
        if isinstance(choice, dict):
            named = (
                (choice.get("function") or {}).get("name")
                if isinstance(choice.get("function"), dict)
                else None
            )
            if named is not None and named not in [tool.function.name for tool in chat.tools]:
                raise ApiError(
                    "unknown_tool", f"tool_choice names {clip(named)!r}, which is not in tools", "tool_choice"
                )
        raise unsupported("tool_choice", "only auto and none; calls are not constrained by a grammar")
    if choice not in (None, "auto", "none"):
        raise ApiError(
            "invalid_value", "tool_choice must be auto, none, required or a function", "tool_choice"
        )


def _reasoning_keys(incoming: Incoming, chat: ChatRequest) -> tuple[str, ...]:
    if chat.include_reasoning is False:
        return ()
    wanted = incoming.state.config.answer.reasoning_output
    return ("reasoning", "reasoning_content") if wanted == "both" else (wanted,)


def _logprob_format(incoming: Incoming, chat: ChatRequest) -> LogprobFormat | None:
    if not chat.logprobs:
        return None
    as_ids = chat.return_tokens_as_token_ids or incoming.state.config.answer.tokens_as_ids
    return LogprobFormat(incoming.state.serving()[2].tokenizer, as_ids)


def _head(incoming: Incoming, kind: str) -> dict[str, object]:
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": incoming.model,
        "system_fingerprint": incoming.state.fingerprint,
    }


async def _stream(
    request: web.Request, incoming: Incoming, chat: ChatRequest, generation: Generation, prompt: Prompt
) -> web.StreamResponse:
    state = incoming.state
    head = _head(incoming, "chat.completion.chunk")
    extra: dict[str, object] = {"mmx": {"warnings": incoming.warnings}} if incoming.warnings else {}
    if chat.return_prompt_text:
        extra["prompt"] = prompt.text
    if chat.return_token_ids:
        extra["prompt_token_ids"] = generation.job.prompts[0]
    writer = ChatWriter(
        head,
        len(generation.choices),
        role=state.config.answer.role,
        reasoning_keys=_reasoning_keys(incoming, chat),
        details=chat.reasoning_split is True,
        logprobs=_logprob_format(incoming, chat),
        keep_ids=bool(chat.return_token_ids),
        tail=stream_tail(generation, chat, extra),
    )
    return await answer_stream(request, generation, writer, head, usage_at_end(chat, state))


async def _whole(
    incoming: Incoming, chat: ChatRequest, generation: Generation, thinking: ThinkingChoice, prompt: Prompt
) -> web.StreamResponse:
    state = incoming.state
    collected = [Collected() for _ in generation.choices]

    async def collect(choice: Choice, deltas: list[Delta]) -> None:
        for delta in deltas:
            collected[choice.index].add(delta)

    await generation.run(collect)
    keys, logprobs = _reasoning_keys(incoming, chat), _logprob_format(incoming, chat)
    extension = incoming.extension(generation.job.params[0], thinking.mode)
    choices: list[dict[str, Any]] = []
    for choice, parts in zip(generation.choices, collected, strict=True):
        reader = choice.reader
        calls = reader.shown_calls(choice.finish_reason) if reader is not None else []
        message = parts.message(state.config.answer.role, keys, chat.reasoning_split is True, calls)
        cut = reader.cut_call(choice.finish_reason) if reader is not None else None
        if cut is not None:
            extension["incomplete_tool_call"] = {"name": cut.name, "arguments": cut.sent}
        choices.append(
            {
                "index": choice.index,
                "message": message,
                "logprobs": logprobs.chat(parts.entries) if logprobs is not None else None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": parts.token_ids if chat.return_token_ids else None,
            }
        )
    body: dict[str, Any] = {**_head(incoming, "chat.completion"), "choices": choices, "mmx": extension}
    if chat.return_token_ids:
        body["prompt_token_ids"] = generation.job.prompts[0]
    if chat.return_prompt_text:
        body["prompt"] = prompt.text
    return answer_json(generation, body)
