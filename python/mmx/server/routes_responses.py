"""POST /v1/responses, and what can be done with a response afterwards."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

from mmx.server.chat_job import ChatJob
from mmx.server.decode import decode_request
from mmx.server.errors import ApiError, clip, unsupported
from mmx.server.generation import Generation
from mmx.server.logprobs import LogprobFormat
from mmx.server.prepare import Incoming, new_id, read_object
from mmx.server.responses_answer import ResponseBuilder, ResponsesWriter
from mmx.server.responses_request import ENCRYPTED, REFUSED_IN_RESPONSES, ResponsesRequest, to_chat
from mmx.server.responses_store import Stored
from mmx.server.serve import answer_stream, json_response
from mmx.server.state import REQUEST_ID, STATE

log = logging.getLogger("mmx.server")


async def responses(request: web.Request) -> web.StreamResponse:
    """Generate a response: whole, as events, or in the background."""
    body = await read_object(request)
    parsed, unknown = decode_request(body, ResponsesRequest, REFUSED_IN_RESPONSES)
    state = request.app[STATE]
    form = to_chat(parsed, body, state.responses)
    # Clients of this API send ever new telemetry, so that a strict server would be of no use to them.
    form.warnings += [f"unknown field {name} was ignored" for name in sorted(unknown)]
    incoming, chat, work = await form.job(request, [])
    keeps = state.responses.enabled and parsed.store is not False
    async with AsyncExitStack() as stack:
        generation = await stack.enter_async_context(Generation(state, work.job))
        before = form.messages[1:] if parsed.instructions is not None else form.messages
        sequences = [choice.request_id for choice in generation.choices]
        stored = Stored(_opening(incoming, parsed, body, work, keeps), before, sequences)
        as_ids = state.config.answer.tokens_as_ids
        logprobs = LogprobFormat(state.serving()[2].tokenizer, as_ids) if chat.logprobs else None
        builder = ResponseBuilder(stored, generation, logprobs, sealed=ENCRYPTED in (parsed.include or ()))
        if keeps:
            state.responses.put(stored)
        if parsed.background:
            stored.task = asyncio.create_task(_work(stack.pop_all(), generation, builder))
            return web.json_response(stored.response)
        stack.callback(_close, builder)
        if parsed.stream:
            return await answer_stream(request, generation, ResponsesWriter(builder))
        return json_response(generation, await _run(generation, builder))


async def retrieve(request: web.Request) -> web.StreamResponse:
    """A stored response as it is now."""
    if request.query.get("stream", "false") != "false":
        raise unsupported("stream", "a stored response is returned whole")
    return web.json_response(_stored(request).response)


async def delete(request: web.Request) -> web.StreamResponse:
    """Forget a response; one in the making is stopped."""
    response_id = request.match_info["id"]
    stored = request.app[STATE].responses.delete(response_id)
    await _stop(request, stored)
    return web.json_response({"id": response_id, "object": "response", "deleted": True})


async def cancel(request: web.Request) -> web.StreamResponse:
    """Stop a response in the making; a finished one stays as it is."""
    stored = _stored(request)
    await _stop(request, stored)
    return web.json_response(stored.response)


def _stored(request: web.Request) -> Stored:
    return request.app[STATE].responses.get(request.match_info["id"], "response_id")


async def _stop(request: web.Request, stored: Stored) -> None:
    engine = request.app[STATE].engine
    if stored.is_open and engine is not None:
        engine.abort(stored.sequences)
        await stored.closed.wait()


def _close(builder: ResponseBuilder) -> None:
    """The end of a response whose handler was left early."""
    if builder.stored.is_open:
        builder.finish()


async def _run(generation: Generation, builder: ResponseBuilder) -> dict[str, Any]:
    try:
        await generation.run(builder.items.collect)
    except ApiError as error:
        builder.finish(error)
        raise
    return builder.finish()


async def _work(stack: AsyncExitStack, generation: Generation, builder: ResponseBuilder) -> None:
    """Generate without a client that waits; faults show in the response."""
    async with stack:
        stack.callback(_close, builder)
        try:
            await _run(generation, builder)
        except ApiError as error:
            log.info("%s failed in the background: %s", REQUEST_ID.get(), error.message)
        except Exception:
            log.exception("%s failed in the background", REQUEST_ID.get())
            builder.finish(ApiError("server_error", f"internal error in request {clip(REQUEST_ID.get())}"))


def _opening(
    incoming: Incoming, parsed: ResponsesRequest, body: dict[str, Any], work: ChatJob, keeps: bool
) -> dict[str, Any]:
    """The response before its output, with what it repeats of the request."""
    (params,) = work.job.params
    reasoning = parsed.reasoning
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "model": incoming.model,
        "status": "in_progress",
        "incomplete_details": None,
        "error": None,
        "output": [],
        "usage": None,
        "instructions": parsed.instructions,
        "max_output_tokens": parsed.max_output_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_logprobs": parsed.top_logprobs or 0,
        "tools": body.get("tools") or [],
        "tool_choice": parsed.tool_choice or "auto",
        "parallel_tool_calls": parsed.parallel_tool_calls is not False,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": reasoning.summary if reasoning is not None else None,
        },
        "text": body.get("text") or {"format": {"type": "text"}},
        "truncation": "disabled",
        "metadata": parsed.metadata or {},
        "previous_response_id": parsed.previous_response_id,
        "store": keeps,
        "background": bool(parsed.background),
        "user": parsed.user,
        "mmx": incoming.extension(params, work.thinking.mode),
    }
