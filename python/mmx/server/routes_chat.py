"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mmx.server.answer import ChatWriter
from mmx.server.chat_job import chat_job
from mmx.server.generation import Generation
from mmx.server.logprobs import LogprobFormat
from mmx.server.prepare import Incoming, receive
from mmx.server.prompts import Prompt
from mmx.server.schemas import REFUSED_IN_CHAT, ChatRequest
from mmx.server.serve import (
    answer_head,
    answer_json,
    answer_stream,
    collect,
    final_usage,
    logprob_format,
    stream_tail,
)
from mmx.server.thinking import ThinkingChoice


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Render, generate, answer."""
    incoming, chat = await receive(request, ChatRequest, REFUSED_IN_CHAT)
    work = await chat_job(request, incoming, chat)
    async with Generation(incoming.state, work.job) as generation:
        if chat.stream:
            return await _stream(request, incoming, chat, generation, work.prompt)
        return await _whole(incoming, chat, generation, work.thinking, work.prompt)


def _reasoning_keys(incoming: Incoming, chat: ChatRequest) -> tuple[str, ...]:
    if chat.include_reasoning is False:
        return ()
    wanted = incoming.state.config.answer.reasoning_output
    return ("reasoning", "reasoning_content") if wanted == "both" else (wanted,)


async def _stream(
    request: web.Request, incoming: Incoming, chat: ChatRequest, generation: Generation, prompt: Prompt
) -> web.StreamResponse:
    state = incoming.state
    extra: dict[str, object] = {"mmx": {"warnings": incoming.warnings}} if incoming.warnings else {}
    if chat.return_prompt_text:
        extra["prompt"] = prompt.text
    if chat.return_token_ids:
        extra["prompt_token_ids"] = generation.job.prompts[0]
    writer = ChatWriter(
        answer_head(incoming, "chat.completion.chunk", "chatcmpl-"),
        len(generation.choices),
        role=state.config.answer.role,
        reasoning_keys=_reasoning_keys(incoming, chat),
        details=chat.reasoning_split is True,
        logprobs=logprob_format(incoming, chat),
        keep_ids=bool(chat.return_token_ids),
        tail=stream_tail(generation, chat, extra),
        usage=final_usage(generation, chat),
    )
    return await answer_stream(request, generation, writer)


async def _whole(
    incoming: Incoming, chat: ChatRequest, generation: Generation, thinking: ThinkingChoice, prompt: Prompt
) -> web.StreamResponse:
    state = incoming.state
    collected = await collect(generation)
    keys, logprobs = _reasoning_keys(incoming, chat), logprob_format(incoming, chat)
    extension = incoming.extension(generation.job.params[0], thinking.mode)
    choices: list[dict[str, Any]] = []
    for choice, parts in zip(generation.choices, collected, strict=True):
        details = chat.reasoning_split is True
        message = parts.message(state.config.answer.role, keys, details, choice.shown_calls())
        if (cut := choice.cut_call()) is not None:
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
    head = answer_head(incoming, "chat.completion", "chatcmpl-")
    body: dict[str, Any] = {**head, "choices": choices, "mmx": extension}
    if chat.return_token_ids:
        body["prompt_token_ids"] = generation.job.prompts[0]
    if chat.return_prompt_text:
        body["prompt"] = prompt.text
    if chat.prompt_logprobs is not None:
        infos = generation.choices[0].prompt_logprobs or []
        tokenizer = state.serving()[2].tokenizer
        body["prompt_logprobs"] = LogprobFormat(tokenizer, False).prompt(generation.job.prompts[0], infos)
    return answer_json(generation, body)
