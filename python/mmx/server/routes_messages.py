"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from aiohttp import web

from mmx.server.chat_form import ChatForm
from mmx.server.chat_job import render_chat
from mmx.server.decode import decode_request
from mmx.server.errors import ApiError, missing
from mmx.server.generation import Generation
from mmx.server.items import Items
from mmx.server.messages_answer import MessagesWriter, content_blocks, message, stop_fields
from mmx.server.messages_request import REFUSED_IN_MESSAGES, MessagesRequest, to_chat
from mmx.server.prepare import Incoming, read_object
from mmx.server.prompts import check_tools
from mmx.server.serve import answer_stream, json_response
from mmx.server.state import STATE


async def messages(request: web.Request) -> web.StreamResponse:
    """Generate one message."""
    form, unknown = await _receive(request)
    if form.body["max_tokens"] is None:
        raise missing("max_tokens")
    incoming, chat, work = await form.job(request, unknown)
    async with Generation(incoming.state, work.job) as generation:
        extension = incoming.extension(work.job.params[0], work.thinking.mode)
        if chat.stream:
            writer = MessagesWriter(incoming.model, generation, extension)
            return await answer_stream(request, generation, writer)
        return await _whole(incoming, generation, extension)


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """Length of the prompt that a message would be generated from."""
    form, unknown = await _receive(request)
    with form.client_words():
        incoming, chat = form.accept(request.app[STATE], unknown)
        check_tools(chat.tools)
        prompt, _, _ = await render_chat(incoming, chat)
    return web.json_response({"input_tokens": len(prompt.token_ids)})


async def _receive(request: web.Request) -> tuple[ChatForm, list[str]]:
    body = await read_object(request)
    if body.get("thread") is not None:
        # Clients know this code: they go on with whole conversations.
        raise ApiError("thread_unsupported_request", "thread is not supported: send the whole conversation")
    parsed, unknown = decode_request(body, MessagesRequest, REFUSED_IN_MESSAGES)
    return to_chat(parsed, request.app[STATE].signer), unknown


async def _whole(
    incoming: Incoming, generation: Generation, extension: dict[str, object]
) -> web.StreamResponse:
    items = Items()
    await generation.run(items.collect)
    (choice,) = generation.choices
    blocks = content_blocks(items, choice, incoming.state.signer)
    body = message(incoming.model, generation, blocks, stop_fields(choice))
    return json_response(generation, {**body, "mmx": extension})
