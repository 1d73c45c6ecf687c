"""The last step of a generation request: one JSON answer, or an event stream."""

from __future__ import annotations

import logging
import time

import msgspec
from aiohttp import web

from mmx.server.answer import Writer
from mmx.server.choice import Choice, Delta
from mmx.server.errors import ApiError
from mmx.server.generation import Generation
from mmx.server.schemas import Generate
from mmx.server.sse import DONE, EventStream, Tail, event
from mmx.server.state import REQUEST_ID, ServerState

log = logging.getLogger("mmx.server")


def answer_json(generation: Generation, body: dict[str, object]) -> web.Response:
    """``body`` with usage, timings and the headers that repeat them."""
    state = generation.state
    body["usage"] = generation.usage(details=state.config.answer.prompt_tokens_details)
    timings = generation.timings()
    body["timings"] = timings
    headers = {
        "x-mmx-prompt-tokens": str(sum(map(len, generation.job.prompts))),
        "x-mmx-cached-tokens": str(timings["cached_tokens"]),
        "openai-processing-ms": str(int(1000 * (time.monotonic() - generation.arrival))),
    }
    return web.Response(body=msgspec.json.encode(body), content_type="application/json", headers=headers)


def usage_at_end(parsed: Generate, state: ServerState) -> bool:
    """Whether a stream ends with a chunk of usage."""
    options = parsed.stream_options
    asked = options is not None and (options.include_usage or options.continuous_usage_stats)
    return bool(asked) or state.config.answer.force_include_usage


def stream_tail(generation: Generation, parsed: Generate, extra: dict[str, object]) -> Tail:
    """Usage in the chunks before the end: numbers with continuous stats, null if some come at the end."""
    details = generation.state.config.answer.prompt_tokens_details
    options = parsed.stream_options
    if options is not None and options.continuous_usage_stats:
        return Tail(False, lambda: generation.usage(details=details), extra)
    return Tail(usage_at_end(parsed, generation.state), None, extra)


async def answer_stream(
    request: web.Request, generation: Generation, writer: Writer, head: dict[str, object], with_usage: bool
) -> web.StreamResponse:
    """Send the deltas as they come. After the headers a fault can only become an event."""
    state = generation.state
    http = state.config.http
    async with EventStream(request, http.keep_alive_interval, http.keep_alive_style) as stream:

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
            await stream.send(event(fault.object()) + DONE)
            return await stream.end(close=True)
        usage = b""
        if with_usage:
            numbers = generation.usage(details=state.config.answer.prompt_tokens_details)
            usage = event({**head, "choices": [], "usage": numbers})
        await stream.send(usage + DONE)
        return await stream.end()
