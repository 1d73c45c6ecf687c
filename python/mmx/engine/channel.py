"""The engine's end of the message channel: a socket to another process, or two lists in this one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Protocol

from mmx.protocol import Frames, FromEngine, Shutdown, ToEngine, decode_to_engine, encode_frame

RECEIVE_BYTES = 1 << 20


class Channel(Protocol):
    """Messages in order, in both directions."""

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Everything that has arrived; with ``wait``, block until there is something."""

    def send(self, messages: Iterable[FromEngine]) -> None: ...


class LocalChannel:
    """Both ends in one thread: the front end fills ``inbox`` and takes from ``outbox``."""

    def __init__(self) -> None:
        self.inbox: list[ToEngine] = []
        self.outbox: list[FromEngine] = []

    def receive(self, *, wait: bool) -> list[ToEngine]:
        if wait and not self.inbox:
            raise RuntimeError("the engine has no work and nobody else could give it some")
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, messages: Iterable[FromEngine]) -> None:
        self.outbox.extend(messages)


class SocketChannel:
    """A connected stream socket with length-prefixed frames. The peer's end of file is a ``Shutdown``. Any
    thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._frames = Frames()
        self._sending = threading.Lock()

    def receive(self, *, wait: bool) -> list[ToEngine]:
        messages: list[ToEngine] = []
        while not messages:
            try:
                data = self._sock.recv(RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            except ConnectionError:
                data = b""
            if not data:
                return [Shutdown()]
            messages = [decode_to_engine(payload) for payload in self._frames.feed(data)]
        return messages

    def send(self, messages: Iterable[FromEngine]) -> None:
        frames = b"".join(map(encode_frame, messages))
        if frames:
            with self._sending:
                self._sock.sendall(frames)
