"""The last step of a generation request: one JSON answer, or an event stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from mmx.server.answer import Collected, Writer
from mmx.server.choice import Choice, Delta
from mmx.server.errors import ApiError
from mmx.server.generation import Generation
from mmx.server.logprobs import LogprobFormat
from mmx.server.prepare import Incoming, new_id
from mmx.server.schemas import ChatRequest, CompletionRequest, Generate
from mmx.server.sse import EventStream, Tail
from mmx.server.state import REQUEST_ID, ServerState

log = logging.getLogger("mmx.server")


def answer_head(incoming: Incoming, kind: str, prefix: str) -> dict[str, object]:
    """The members that every answer and every chunk begins with; its id begins with ``prefix``."""
    return {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": incoming.model,
        "system_fingerprint": incoming.state.fingerprint,
    }


def logprob_format(incoming: Incoming, parsed: ChatRequest | CompletionRequest) -> LogprobFormat | None:
    """How the logprobs of generated tokens are shown; None if they were not asked for."""
    if parsed.logprobs is None or parsed.logprobs is False:
        return None
    as_ids = parsed.return_tokens_as_token_ids or incoming.state.config.answer.tokens_as_ids
    return LogprobFormat(incoming.state.serving()[2].tokenizer, as_ids)


async def collect(generation: Generation) -> list[Collected]:
    """Generate to the end: the sums of each choice's deltas."""
    collected = [Collected() for _ in generation.choices]

    async def add(choice: Choice, deltas: list[Delta]) -> None:
        for delta in deltas:
            collected[choice.index].add(delta)

    await generation.run(add)
    return collected


def answer_json(generation: Generation, body: dict[str, object]) -> web.Response:
    """``body`` with usage, timings and the headers that repeat them."""
    state = generation.state
    body["usage"] = generation.usage(details=state.config.answer.prompt_tokens_details)
    timings = generation.timings()
    body["timings"] = timings
    return json_response(generation, body)


def json_response(generation: Generation, body: dict[str, object]) -> web.Response:
    """``body`` with the headers of a finished generation."""
    headers = {
        "x-mmx-prompt-tokens": str(sum(map(len, generation.job.prompts))),
        "x-mmx-cached-tokens": str(sum(c.num_cached_tokens for c in generation.choices)),
        "openai-processing-ms": str(int(1000 * (time.monotonic() - generation.arrival))),
    }
    return web.Response(body=msgspec.json.encode(body), content_type="application/json", headers=headers)


def _usage_at_end(parsed: Generate, state: ServerState) -> bool:
    options = parsed.stream_options
    asked = options is not None and (options.include_usage or options.continuous_usage_stats)
    return bool(asked) or state.config.answer.force_include_usage


def final_usage(generation: Generation, parsed: Generate) -> Callable[[], dict[str, object]] | None:
    """The numbers for the chunk of usage that ends a stream; None if there is to be none."""
    if not _usage_at_end(parsed, generation.state):
        return None
    details = generation.state.config.answer.prompt_tokens_details
    return lambda: generation.usage(details=details)


def stream_tail(generation: Generation, parsed: Generate, extra: dict[str, object]) -> Tail:
    """Usage in the chunks before the end: numbers with continuous stats, null if some come at the end."""
    details = generation.state.config.answer.prompt_tokens_details
    options = parsed.stream_options
    if options is not None and options.continuous_usage_stats:
        return Tail(False, lambda: generation.usage(details=details), extra)
    return Tail(_usage_at_end(parsed, generation.state), None, extra)


async def answer_stream(request: web.Request, generation: Generation, writer: Writer) -> web.StreamResponse:
    """Send the deltas as they come. After the headers a fault can only become an event."""
    http = generation.state.config.http
    sign = writer.keep_alive or (b": keep-alive\n\n" if http.keep_alive_style == "comment" else b"\n")
    async with EventStream(request, http.keep_alive_interval, sign) as stream:
        if opening := writer.begin():
            await stream.send(opening)

        async def emit(choice: Choice, deltas: list[Delta]) -> None:
            data = b"".join([writer.write(choice, delta) for delta in deltas])
            if data:
                await stream.send(data)

        fault: ApiError | None = None
        try:
            await generation.run(emit)
        except ApiError as error:
            fault = error
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s %s failed", REQUEST_ID.get(), request.path)
            fault = ApiError("server_error", f"internal error in request {REQUEST_ID.get()}")
        if fault is not None:
            await stream.send(writer.fault(fault))
            return await stream.end(close=True)
        await stream.send(writer.end())
        return await stream.end()
