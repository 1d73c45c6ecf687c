"""What rank 0 and the other ranks tell each other beside the collectives: plain data over TCP.

Life of a rank: ``Hello`` -> ``Welcome`` (or ``Refused``) -> ``Step`` after ``Step``, answered by ``Sampled``
where the rank samples for others -> ``Stop``. ``Beat`` comes once a second; ``Gone`` is a rank's last word.
"""

from __future__ import annotations

import socket
import threading

import msgspec

from mmx.batch import SampledToken, ScheduledBatch
from mmx.engine.channel import RECEIVE_BYTES
from mmx.protocol import Frames, encode_frame

BEAT_SECONDS = 1.0
# A rank that has said nothing for so long is lost: stopped, cut off, or its machine is gone.
SILENCE_SECONDS = 8.0


class Word(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages."""


class Hello(Word, frozen=True, kw_only=True):
    """``facts`` must be the same on all ranks: versions, settings, files of the checkpoint."""

    rank: int
    host: str
    pid: int
    facts: dict[str, str]


class Welcome(Word, frozen=True, kw_only=True):
    """Everybody is here; the collectives' store listens at ``port`` of rank 0's address."""

    port: int


class Refused(Word, frozen=True, kw_only=True):
    message: str
    exit_code: int


class Step(Word, frozen=True, kw_only=True):
    """Every rank computes its part of ``batch``."""

    batch: ScheduledBatch


class Sampled(Word, frozen=True, kw_only=True):
    """What this rank has sampled for its group."""

    step: int
    tokens: list[SampledToken]


class Beat(Word, frozen=True, kw_only=True):
    """The rank lives: it has begun ``step`` and ``num_calls`` collectives; ``doing`` is the one it waits
    in."""

    step: int
    num_calls: int
    doing: str | None


class Gone(Word, frozen=True, kw_only=True):
    message: str
    exit_code: int


class Stop(Word, frozen=True, kw_only=True):
    """No more steps."""


AnyWord = Hello | Welcome | Refused | Step | Sampled | Beat | Gone | Stop

_decoder: msgspec.msgpack.Decoder[AnyWord] = msgspec.msgpack.Decoder(AnyWord)


class Line:
    """A connected socket with length-prefixed messages. Any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._frames = Frames()
        self._lock = threading.Lock()

    def send(self, word: AnyWord) -> None:
        self.send_frame(encode_frame(word))

    def send_frame(self, data: bytes) -> None:
        with self._lock:
            self.sock.sendall(data)

    def receive(self) -> list[AnyWord] | None:
        """The messages that one read completes, perhaps none; None at the end of the connection."""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except OSError as error:
            if error.errno is None:  # the socket's own time limit
                raise
            return None
        if not data:
            return None
        return [_decoder.decode(payload) for payload in self._frames.feed(data)]

    def first(self) -> list[AnyWord]:
        """``receive`` until there is a message; empty if the connection ends before."""
        while (words := self.receive()) == []:
            pass
        return words or []
