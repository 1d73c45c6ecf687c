"""Frames on the engine's socket."""

from __future__ import annotations

import socket
import threading

import pytest

from mmx.config import SamplingParams
from mmx.engine.channel import LocalChannel, SocketChannel
from mmx.protocol import HEADER, Abort, Failed, Shutdown, Submit, decode_from_engine, encode_frame

MESSAGES = [
    Submit(request_id="a", prompt_token_ids=[1, 2, 200_000], params=SamplingParams(logit_bias={5: -1.0})),
    Abort(request_ids=["a", "ü"]),
]


def test_frames_survive_any_cut() -> None:
    ours, theirs = socket.socketpair()
    channel = SocketChannel(theirs)
    data = b"".join(encode_frame(m) for m in MESSAGES)
    received = []
    for i in range(len(data)):
        ours.sendall(data[i : i + 1])
        received += channel.receive(wait=False)
    assert received == MESSAGES
    ours.sendall(data + data)
    assert channel.receive(wait=True) == MESSAGES + MESSAGES
    assert channel.receive(wait=False) == []


def test_waiting_ends_with_a_whole_message() -> None:
    ours, theirs = socket.socketpair()
    frame = encode_frame(MESSAGES[0])
    ours.sendall(frame[:9])
    timer = threading.Timer(0.05, ours.sendall, [frame[9:]])
    timer.start()
    assert SocketChannel(theirs).receive(wait=True) == MESSAGES[:1]
    timer.join()


def test_the_end_of_the_peer_is_a_shutdown() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    channel = SocketChannel(theirs)
    assert channel.receive(wait=False) == [Shutdown()]
    with pytest.raises(BrokenPipeError):
        channel.send([Failed(request_id="a", message="m", code="c", status=500)])


def test_messages_are_sent_in_order() -> None:
    ours, theirs = socket.socketpair()
    failures = [Failed(request_id=str(i), message="m", code="c", status=500) for i in range(3)]
    SocketChannel(theirs).send(failures)
    data, decoded = ours.recv(1 << 16), []
    while data:
        (length,) = HEADER.unpack_from(data)
        decoded.append(decode_from_engine(data[HEADER.size : HEADER.size + length]))
        data = data[HEADER.size + length :]
    assert decoded == failures


def test_a_local_channel_refuses_to_wait_forever() -> None:
    with pytest.raises(RuntimeError, match="no work"):
        LocalChannel().receive(wait=True)
