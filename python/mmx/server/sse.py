"""Event streams: the connection they are written to, and the bytes of their events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import HttpVersion11, web

# A client that reads nothing for this long while data waits for it is cut off.
STALL_SECONDS = 60.0
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(payload: object) -> bytes:
    """One event with ``payload`` as JSON."""
    return b"data: %b\n\n" % _encode(payload)


def named_event(payload: dict[str, object]) -> bytes:
    """One event that also has its ``type`` in a line of its own."""
    return b"event: %b\n%b" % (str(payload["type"]).encode(), event(payload))


class EventStream:
    """A text/event-stream answer. Whenever nothing was sent for ``keep_alive`` seconds, the ``sign`` of
    life goes out, such as an empty line, which every client ignores."""

    def __init__(self, request: web.Request, keep_alive: float, sign: bytes) -> None:
        self._request = request
        self._keep_alive = keep_alive
        self._sign = sign
        self._response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )
        self._loop = asyncio.get_running_loop()
        self._last_write = 0.0
        self._writing_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> EventStream:
        """Send the headers."""
        if self._request.version >= HttpVersion11:
            self._response.enable_chunked_encoding()
        else:
            # Nothing but the end of the connection tells this client that the stream is over.
            self._response.force_close()
        await self._response.prepare(self._request)
        self._last_write = self._loop.time()
        self._timer = self._loop.call_later(self._keep_alive, self._tick)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def send(self, data: bytes) -> None:
        """Write complete events; waits while the client's connection is full."""
        self._writing_since = self._last_write = self._loop.time()
        await self._response.write(data)
        self._writing_since = None

    async def end(self, *, close: bool = False) -> web.StreamResponse:
        """Finish the answer properly; ``close`` ends the connection with it."""
        if close:
            self._response.force_close()
        await self._response.write_eof()
        return self._response

    def _tick(self) -> None:
        transport = self._request.transport
        if transport is None:
            return
        now = self._loop.time()
        if self._writing_since is not None:
            if now - self._writing_since > STALL_SECONDS:
                transport.abort()
                return
        elif now - self._last_write >= self._keep_alive:
            self._last_write = now
            sign = self._sign
            chunked = self._request.version >= HttpVersion11
            transport.write(b"%x\r\n%b\r\n" % (len(sign), sign) if chunked else sign)
        self._timer = self._loop.call_at(max(self._last_write + self._keep_alive, now + 0.01), self._tick)


class Tail:
    """What follows the choices in each event: usage (none, null, or the numbers so far) and, in the first
    event only, ``extra`` members."""

    def __init__(
        self, usage_null: bool, usage: Callable[[], object] | None, extra: dict[str, object]
    ) -> None:
        self._constant = b',"usage":null}\n\n' if usage_null else b"}\n\n"
        self._usage = usage
        self._extra = b"," + _encode(extra)[1:-1] if extra else b""

    def __call__(self) -> bytes:
        extra, self._extra = self._extra, b""
        if self._usage is not None:
            return extra + b',"usage":%b}\n\n' % _encode(self._usage())
        return extra + self._constant


class ChunkTemplate:
    """The bytes of one choice's events that do not change from token to token, so that a token costs one
    JSON string and a concatenation."""

    def __init__(self, head: dict[str, object], index: int, tail: Tail) -> None:
        self._head = b'data: %b,"choices":[{"index":%d,' % (_encode(head)[:-1], index)
        self._tail = tail

    def delta(self, delta: bytes, logprobs: object, finish: bytes, more: bytes) -> bytes:
        """A chat chunk with the JSON object ``delta``; ``more`` is ``,"key":value`` text of the choice."""
        return self._event(b'"delta":' + delta, logprobs, finish, more)

    def text(self, text: str, logprobs: object, finish: bytes, more: bytes) -> bytes:
        """A completions chunk."""
        return self._event(b'"text":' + _encode(text), logprobs, finish, more)

    def _event(self, payload: bytes, logprobs: object, finish: bytes, more: bytes) -> bytes:
        shown = b"null" if logprobs is None else _encode(logprobs)
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b}]%b' % (
            self._head, payload, shown, finish, more, self._tail()
        )  # fmt: skip
