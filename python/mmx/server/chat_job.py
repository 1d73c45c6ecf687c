"""From a chat request to a job: the one way to generation for every API that is a conversation."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from aiohttp import web

from mmx.server.constrain import chat_constraint
from mmx.server.errors import invalid, unsupported
from mmx.server.generation import Job
from mmx.server.output import prompt_tail
from mmx.server.prepare import Incoming, build_job
from mmx.server.prompts import Prompt, chat_prompt, check_ids, check_tools, in_pool, render_options
from mmx.server.schemas import ChatRequest
from mmx.server.thinking import ThinkingChoice, choose


class ChatJob(NamedTuple):
    """The ``job`` with what the answer says about it."""

    job: Job
    prompt: Prompt
    thinking: ThinkingChoice


async def chat_job(request: web.Request, incoming: Incoming, chat: ChatRequest) -> ChatJob:
    """Check what only conversations have, render them, build the job; warnings go to ``incoming``."""
    _check(chat)
    prompt, thinking, field = await render_chat(incoming, chat)
    front = incoming.state.serving()[2]
    tail = prompt.text if prompt.text is not None else prompt_tail(front.tokenizer, prompt.token_ids)
    make_reader = partial(
        front.output.reader,
        prompt=tail,
        thinking_mode=thinking.mode,
        tools=incoming.body.get("tools"),
        tool_choice=chat.tool_choice if isinstance(chat.tool_choice, str) else "auto",
        inline_thoughts=chat.reasoning_split is False or chat.separate_reasoning is False,
    )
    make = chat_constraint(front, chat, thinking, tail, incoming.state.serving()[1].vocab_size)
    constraint = await in_pool(incoming.state, make)
    job = build_job(request, incoming, chat, [prompt], field, make_reader, constraint)
    return ChatJob(job, prompt, thinking)


async def render_chat(incoming: Incoming, chat: ChatRequest) -> tuple[Prompt, ThinkingChoice, str]:
    """The prompt, the mode of thinking and the name of the field that the prompt came from."""
    state = incoming.state
    _, ready, front = state.serving()
    thinking = choose(chat, state.config.model.default_chat_template_kwargs, front.family)
    incoming.warnings += thinking.warnings
    given_ids = chat.prompt_token_ids if chat.prompt_token_ids is not None else chat.input_ids
    if given_ids is not None:
        field = "prompt_token_ids" if chat.prompt_token_ids is not None else "input_ids"
        check_ids(given_ids, ready.vocab_size, field)
        return Prompt(given_ids, None), thinking, field
    kwargs = thinking.template_kwargs
    if chat.documents is not None:
        kwargs = {**kwargs, "documents": chat.documents}
    prompt = await chat_prompt(state, front, incoming.body, render_options(chat, kwargs))
    incoming.warnings += prompt.warnings
    return prompt, thinking, "messages"


def _check(chat: ChatRequest) -> None:
    """Fields that only chat has."""
    if not chat.messages:
        raise invalid("messages", "must hold at least one message", "empty_array")
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise unsupported("modalities", 'only ["text"]')
    check_tools(chat.tools)
