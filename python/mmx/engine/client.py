"""The asyncio side of an engine process: start it, submit requests, receive their tokens.

Imports nothing heavy: a server that holds a client never loads torch.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn, cast

from mmx.config import EngineConfig
from mmx.engine.process import child_environment, command_of
from mmx.protocol import (
    Abort,
    EngineDead,
    EngineStats,
    Failed,
    Frames,
    FromEngine,
    Loading,
    Profile,
    Profiled,
    Ready,
    ResetPrefixCache,
    Shutdown,
    StepOutput,
    Submit,
    ToEngine,
    TokenOut,
    decode_from_engine,
    encode_frame,
)

RUNNERS = {"model": "mmx.runner", "null": "mmx.engine.null_runner"}
SOCKET_BUFFER_BYTES = 4 << 20
EXIT_GRACE_SECONDS = 5.0
LAST_WORDS_SECONDS = 0.5


def start_ranks(config: EngineConfig, runner: str = "model") -> NoReturn:
    """Become the process of the ranks that ``config.place`` names, for a rank 0 elsewhere."""
    sys.stderr.flush()
    command = command_of("mmx.engine.rank", config, RUNNERS.get(runner, runner))
    os.execve(sys.executable, command, child_environment())


class EngineDeadError(RuntimeError):
    """The engine process ended before it was ready; ``exit_code`` is what a server should exit with."""

    def __init__(self, dead: EngineDead) -> None:
        super().__init__(dead.message)
        self.exit_code = dead.exit_code


class RequestStream:
    """What the engine says about one request: ``TokenOut`` items up to one with a ``finish_reason``, or one
    ``Failed``. One consumer at a time."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._items: list[TokenOut | Failed] = []
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: TokenOut | Failed) -> None:
        self._items.append(item)
        if isinstance(item, Failed) or item.finish_reason is not None:
            self._ended = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[TokenOut | Failed]:
        """All items that have arrived, at least one; an empty list after the last one."""
        if not self._items and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items


class EngineClient:
    """One engine process and the requests that live in it. Use from one event loop.

    ``ready`` is None until the engine serves, ``loading`` the latest progress until then, ``dead`` why
    the engine is gone, ``stats`` the gauges of the latest step. ``on_step`` sees every ``StepOutput``,
    ``on_dead`` is called once if the engine ends without having been asked to.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ready: Ready | None = None
        self.loading: Loading | None = None
        self.stats: EngineStats | None = None
        self.dead: EngineDead | None = None
        self.on_step: Callable[[StepOutput], None] | None = None
        self.on_dead: Callable[[EngineDead], None] | None = None
        self._streams: dict[str, RequestStream] = {}
        self._profiles: deque[asyncio.Future[Profiled]] = deque()  # in the order of their questions
        self._transport: asyncio.Transport | None = None
        self._stopping = False
        self._no_streams = asyncio.Event()
        self._no_streams.set()
        self._ready_or_dead = asyncio.Event()
        self._closed = asyncio.Event()
        self._exit_watch = asyncio.create_task(self._watch_exit())

    @classmethod
    async def start(cls, config: EngineConfig, runner: str = "model") -> EngineClient:
        """Start the engine process; returns at once, see ``wait_ready``.

        ``runner`` is "model", "null" or the name of a module with a ``build_runner``.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            process = await asyncio.create_subprocess_exec(
                *command_of("mmx.engine.worker", config, RUNNERS.get(runner, runner)),
                *("--fd", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
            )
        client = cls(process)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: _Connection(client), sock=ours)
        return client

    async def wait_ready(self) -> Ready:
        """The engine's ``Ready``; raises EngineDeadError if it ended instead."""
        await self._ready_or_dead.wait()
        if self.dead is not None:
            raise EngineDeadError(self.dead)
        return cast(Ready, self.ready)

    @property
    def num_open(self) -> int:
        """Requests without an end so far."""
        return len(self._streams)

    def submit(self, message: Submit) -> RequestStream:
        """Start a request. Without a live engine the stream holds one ``Failed`` with status 503."""
        request_id = message.request_id
        if request_id in self._streams:
            raise ValueError(f"request_id must be unique among live requests, got {request_id!r} twice")
        stream = RequestStream(request_id)
        if self.dead is not None or self._stopping:
            stream.put(self._unavailable(request_id))
            return stream
        self._streams[request_id] = stream
        self._no_streams.clear()
        self._send(message)
        return stream

    def abort(self, request_ids: Iterable[str]) -> None:
        """Stop requests; their streams end with ``finish_reason`` "abort". Unknown ids are ignored."""
        ids = [request_id for request_id in request_ids if request_id in self._streams]
        if ids:
            self._send(Abort(request_ids=ids))
        for request_id in ids:
            self._end(TokenOut(request_id=request_id, token_ids=[], finish_reason="abort"))

    def reset_prefix_cache(self) -> None:
        """Forget all cached pages that no running request uses."""
        self._send(ResetPrefixCache())

    async def profile(self, message: Profile) -> Profiled:
        """Start or end a recording of the engine's steps."""
        if self.dead is not None or self._stopping:
            return Profiled(error="the engine has ended")
        answer: asyncio.Future[Profiled] = asyncio.get_running_loop().create_future()
        self._profiles.append(answer)
        self._send(message)
        return await answer

    async def shutdown(self, drain_timeout: float = 0.0) -> int:
        """Refuse new requests, let open ones finish for ``drain_timeout`` seconds, fail the rest, end
        the process. Returns its exit code (negative: the signal that killed it)."""
        self._stopping = True
        if self._streams and drain_timeout > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._no_streams.wait(), drain_timeout)
        self._fail_open()
        self._send(Shutdown())
        try:
            await asyncio.wait_for(asyncio.shield(self._exit_watch), EXIT_GRACE_SECONDS)
        except asyncio.TimeoutError:
            self.process.kill()
            await self._exit_watch
        if self._transport is not None:
            self._transport.close()
        return cast(int, self.process.returncode)

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def _receive(self, message: FromEngine) -> None:
        match message:
            case StepOutput():
                self.stats = message.stats
                streams = self._streams
                for output in message.outputs:
                    if output.finish_reason is not None:
                        self._end(output)
                    elif (stream := streams.get(output.request_id)) is not None:
                        stream.put(output)
                if self.on_step is not None:
                    self.on_step(message)
            case Failed():
                self._end(message)
            case Profiled():
                self._answer_profile(message)
            case Loading():
                self.loading = message
            case Ready():
                self.ready = message
                self._ready_or_dead.set()
            case EngineDead():
                self._die(message)

    def _end(self, item: TokenOut | Failed) -> None:
        stream = self._streams.pop(item.request_id, None)
        if stream is not None:
            stream.put(item)
            if not self._streams:
                self._no_streams.set()

    # ---- ends ------------------------------------------------------------------------------------

    async def _watch_exit(self) -> None:
        """Notice the end of the process or of its connection, whichever is first, and then wait a
        moment for the other: the last message may say why, the exit code says how."""
        exited = asyncio.create_task(self.process.wait())
        closed = asyncio.create_task(self._closed.wait())
        await asyncio.wait((exited, closed), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((exited, closed), timeout=LAST_WORDS_SECONDS)
        how = f"ended with exit code {exited.result()}" if exited.done() else "closed its connection"
        self._die(EngineDead(message=f"the engine process {how}"))
        await exited

    def _die(self, dead: EngineDead) -> None:
        """Remember the first reason, wake everybody who waits."""
        if self.dead is not None:
            return
        self.dead = dead
        self._ready_or_dead.set()
        self._fail_open()
        if self.on_dead is not None and not self._stopping:
            self.on_dead(dead)

    def _answer_profile(self, message: Profiled) -> None:
        answer = self._profiles.popleft()
        if not answer.done():
            answer.set_result(message)

    def _fail_open(self) -> None:
        while self._profiles:
            self._answer_profile(Profiled(error="the engine has ended"))
        for request_id in list(self._streams):
            self._end(self._unavailable(request_id))

    def _unavailable(self, request_id: str) -> Failed:
        code, text = "draining", "the server is shutting down"
        if not self._stopping:
            code, text = "engine_dead", "the engine has ended; the server can not answer any more"
        return Failed(request_id, text, code, 503)


class _Connection(asyncio.Protocol):
    """Cuts the byte stream into messages."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            self._client._receive(decode_from_engine(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._client._closed.set()
