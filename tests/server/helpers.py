"""The real application on a loopback socket, in front of an engine that answers from a script."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
from aiohttp import web

from mmx.engine.client import RequestStream
from mmx.model_path import demo_model_path
from mmx.protocol import (
    EngineDead,
    EngineStats,
    Failed,
    Loading,
    Ready,
    StepOutput,
    Submit,
    TokenLogprobs,
    TokenOut,
)
from mmx.server.app import create_app
from mmx.server.settings import load_config
from mmx.server.state import ServerState
from mmx.tokenizer import Tokenizer

DEMO = demo_model_path()
TOKENIZER = Tokenizer(DEMO)
(EOS,) = TOKENIZER.eos_token_ids
MODEL = "mmx-demo"
# A call as the model writes it, the function's parameters and what it is called with.
NS = "]<]minimax[>["
CALL = (
    f'{NS}<tool_call>\n{NS}<invoke name="get_weather">{NS}<city>Os"lo{NS}</city>{NS}<days>3{NS}</days>'
    f"{NS}</invoke>\n{NS}</tool_call>"
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
ARGUMENTS = {"city": 'Os"lo', "days": 3}

Script = Callable[[Submit], "list[int] | Failed"]


def stats(running: int = 0, waiting: int = 0) -> EngineStats:
    values = dict.fromkeys(EngineStats.__struct_fields__, 0)
    return EngineStats(**{**values, "num_running": running, "num_waiting": waiting, "num_blocks": 64})


def _logprobs(top: int | None, ids: list[int]) -> list[TokenLogprobs] | None:
    if top is None:
        return None
    return [TokenLogprobs(-0.5, 1, [i, *range(top - 1)][:top], [-0.5 - k for k in range(top)]) for i in ids]


def _is_canary(message: Submit) -> bool:
    """The server's own generation, which looks whether the engine works."""
    return message.request_id.startswith("canary")


class ScriptedEngine:
    """Implements the engine the server sees. ``script`` maps a request to its tokens; one token a step,
    ``step_seconds`` apart. ``finish_reason`` is stop if the last token is the end token, else length."""

    def __init__(
        self, script: Script | str = "Hello there.", *, step_seconds: float = 0.0, **limits: int
    ) -> None:
        text = script if isinstance(script, str) else ""
        self.script: Script = script if callable(script) else lambda _: [*TOKENIZER.encode(text), EOS]
        self.step_seconds = step_seconds
        self.tokens_per_step = 1
        self.ready: Ready | None = None
        self.loading: Loading | None = Loading(phase="weights", progress=0.25)
        self.stats: EngineStats | None = None
        self.dead: EngineDead | None = None
        self.on_step: Callable[[StepOutput], None] | None = None
        self.on_dead: Callable[[EngineDead], None] | None = None
        self.may_be_ready = asyncio.Event()
        self.submitted: list[Submit] = []
        self.aborted: list[str] = []
        self._limits = {"max_num_seqs": 8, "max_num_queued_reqs": 32, "max_model_len": 4096, **limits}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._streams: dict[str, RequestStream] = {}

    @property
    def num_open(self) -> int:
        return len(self._streams)

    async def wait_ready(self) -> Ready:
        await self.may_be_ready.wait()
        self.ready = Ready(
            model_family="scripted",
            device="cpu",
            dtype="float32",
            vocab_size=TOKENIZER.vocab_size,
            max_model_len=self._limits["max_model_len"],
            max_model_len_reason="scripted",
            block_size=64,
            num_blocks=self._limits.get("num_blocks", 64),
            max_num_seqs=self._limits["max_num_seqs"],
            max_num_batched_tokens=2048,
            max_num_queued_reqs=self._limits["max_num_queued_reqs"],
        )
        return self.ready

    async def started(self) -> None:
        """Wait for the first request."""
        while not self.submitted:
            await asyncio.sleep(0.005)

    def submit(self, message: Submit) -> RequestStream:
        stream = RequestStream(message.request_id)
        assert message.request_id not in self._streams
        self._streams[message.request_id] = stream
        if not _is_canary(message):
            self.submitted.append(message)
        self._tasks[message.request_id] = asyncio.ensure_future(self._play(message, stream))
        return stream

    async def _play(self, message: Submit, stream: RequestStream) -> None:
        tokens = [5, 6] if _is_canary(message) else self.script(message)
        if isinstance(tokens, Failed):
            self._streams.pop(message.request_id, None)
            stream.put(tokens)
            return
        limit = message.params.max_tokens or len(tokens)
        tokens = tokens[:limit]
        explained = _logprobs(message.params.prompt_logprobs, message.prompt_token_ids[1:])
        group = self.tokens_per_step
        for start in range(0, len(tokens), group):
            if self.step_seconds and not _is_canary(message):
                await asyncio.sleep(self.step_seconds)
            ids = tokens[start : start + group]
            finish = None
            if start + group >= len(tokens):
                finish = "stop" if ids[-1] == EOS or ids[-1] in message.params.stop_token_ids else "length"
                self._streams.pop(message.request_id, None)
            stream.put(
                TokenOut(
                    request_id=message.request_id,
                    token_ids=ids,
                    logprobs=_logprobs(message.params.logprobs, ids),
                    finish_reason=finish,
                    stop_reason=ids[-1] if finish == "stop" else None,
                    num_cached_tokens=64 if start == 0 else None,
                    prompt_logprobs=explained if start == 0 else None,
                )
            )
            self.stats = stats(running=1)
            if self.on_step is not None:
                self.on_step(StepOutput(outputs=[], stats=self.stats, step_tokens=1, step_seconds=0.001))

    def abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            stream = self._streams.pop(request_id, None)
            if stream is not None:
                self._tasks[request_id].cancel()
                self.aborted.append(request_id)
                stream.put(TokenOut(request_id=request_id, token_ids=[], finish_reason="abort"))

    def reset_prefix_cache(self) -> None:
        self.submitted.clear()

    def die(self) -> None:
        """What the client does when the engine process ends."""
        self.dead = EngineDead(message="killed by the test")
        for request_id, stream in list(self._streams.items()):
            self._tasks[request_id].cancel()
            del self._streams[request_id]
            stream.put(
                Failed(request_id=request_id, message="the engine has ended", code="engine_dead", status=503)
            )
        if self.on_dead is not None:
            self.on_dead(self.dead)

    async def shutdown(self, drain_timeout: float = 0.0) -> int:
        for request_id, stream in list(self._streams.items()):
            self._tasks[request_id].cancel()
            stream.put(Failed(request_id=request_id, message="shutting down", code="draining", status=503))
        return 0


class Server:
    """A running application: ``url``, its state and engine, and clients."""

    def __init__(self, url: str, state: ServerState, engine: ScriptedEngine, app: web.Application) -> None:
        self.url = url
        self.state = state
        self.engine = engine
        self.app = app
        self.http = aiohttp.ClientSession(base_url=url)
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.http.post(path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def chat(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.post("/v1/chat/completions", body)

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.http.get(path) as response:
            return response.status, await response.json()

    async def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream as they are on the wire; the line of the type must agree with the data."""
        events = []
        async with self.http.post(path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            for block in (await response.text()).strip().split("\n\n"):
                name, data = block.strip().split("\n")
                events.append(json.loads(data.removeprefix("data: ")))
                assert name == f"event: {events[-1]['type']}"
        return events

    async def ask_and_leave(self, path: str, body: dict[str, Any]) -> None:
        """Leave before the answer or, with ``stream``, at its first bytes; the engine must be told."""
        request = asyncio.ensure_future(self.http.post(path, json=body))
        await self.engine.started()
        if body["stream"]:
            response = await request
            await response.content.readany()
            response.close()
        else:
            request.cancel()
        await self.idle()
        assert self.engine.aborted == [self.engine.submitted[0].request_id]

    def prompt(self) -> str:
        """Text of the latest prompt."""
        return TOKENIZER.decode(self.engine.submitted[-1].prompt_token_ids, skip_special_tokens=False)

    async def idle(self) -> None:
        """Wait until no request is open any more."""
        for _ in range(500):
            if not self.state.live and self.engine.num_open == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"still open: {list(self.state.live)}")


@asynccontextmanager
async def serving(
    engine: ScriptedEngine | None = None, *flags: str, wait: bool = True, folder: Path = DEMO
) -> AsyncIterator[Server]:
    """A server with these flags; ``wait``: until it is ready."""
    engine = engine or ScriptedEngine()
    state = ServerState(load_config(flags, {}), folder)

    async def start() -> ScriptedEngine:
        return engine

    app = create_app(state, start)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, sock).start()
    server = Server(f"http://127.0.0.1:{sock.getsockname()[1]}", state, engine, app)
    try:
        if wait:
            engine.may_be_ready.set()
            while state.phase == "loading":
                await asyncio.sleep(0.005)
        yield server
    finally:
        await server.http.close()
        await server.openai.close()
        await runner.cleanup()


def check_error(status: int, body: dict[str, Any], expected: tuple[int, str, str | None]) -> None:
    """The status, code and param of an error object whose text shows nothing of the inside."""
    error = body["error"]
    assert (status, error["code"], error["param"]) == expected, body
    assert set(error) == {"message", "type", "param", "code"}
    text = error["message"]
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    assert "/python/" not in text
    assert len(text) < 400
