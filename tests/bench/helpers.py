"""A server whose answers have known times, because it moves the client's clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from mmx.bench.events import Answer, TokenEvent
from mmx.bench.options import Options, parse
from mmx.model_path import demo_model_path
from mmx.tokenizer import Tokenizer

DEMO = demo_model_path()
TOKENIZER = Tokenizer(DEMO)


def options(*flags: str) -> Options:
    return parse(flags)


class FakeClock:
    """Stands still between the server's moves; ``reads`` counts looks at it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


@dataclass
class Play:
    """An answer: at these seconds after its start these bytes are written. ``status`` other than 200: the
    bytes of the first entry are the body."""

    writes: list[tuple[float, bytes]]
    status: int = 200


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def completion(text: str, finish: str | None = None, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}], **more})


def chat(finish: str | None = None, **delta: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None})


def usage(prompt: int, output: int, cached: int | None = None) -> dict[str, Any]:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": prompt, "completion_tokens": output, **details}


def ending(prompt: int, output: int, cached: int | None = None) -> bytes:
    return event({"choices": [], "usage": usage(prompt, output, cached)}) + b"data: [DONE]\n\n"


@dataclass
class FakeServer:
    plays: list[Play]
    clock: FakeClock = field(default_factory=FakeClock)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        begin = self.clock.now
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        play = self.plays.pop(0)
        if play.status != 200 or not self.bodies[-1]["stream"]:
            at, body = play.writes[0]
            self.clock.now = begin + at
            return web.Response(status=play.status, body=body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at, data in play.writes:
            reads = self.clock.reads
            self.clock.now = begin + at
            await response.write(data)
            while self.clock.reads == reads:
                await asyncio.sleep(0.0005)
        await response.write_eof()
        return response

    async def models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": "fake-model"}]})

    async def version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "1.2.3"})


@asynccontextmanager
async def fake_server(*plays: Play) -> AsyncIterator[FakeServer]:
    fake = FakeServer(list(plays))
    app = web.Application()
    app.router.add_post("/v1/completions", fake.generate)
    app.router.add_post("/v1/chat/completions", fake.generate)
    app.router.add_post("/v1/messages", fake.generate)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_get("/version", fake.version)
    async with TestServer(app) as server:
        fake.url = str(server.make_url("")).rstrip("/")
        yield fake


def answer(
    start: float, *times: float, counts: list[int] | None = None, text: str = "x", **fields: Any
) -> Answer:
    """A finished answer with an event at each of ``times`` after its start."""
    known = counts or [None] * len(times)
    events = [TokenEvent(start + t, text, k) for t, k in zip(times, known, strict=True)]
    end = start + (times[-1] if times else 0.0)
    return Answer(**{"arrival": start, "start": start, "end": end, "events": events, **fields})
