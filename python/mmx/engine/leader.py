"""Rank 0 of several: brings the ranks together, hands every step to all of them, notices when one is lost."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from mmx.batch import SampledToken, ScheduledBatch
from mmx.config import EngineConfig
from mmx.distributed import CallLog
from mmx.engine.agreement import difference, facts
from mmx.engine.control import (
    BEAT_SECONDS,
    SILENCE_SECONDS,
    Beat,
    Gone,
    Hello,
    Line,
    Refused,
    Sampled,
    Step,
    Stop,
    Welcome,
)
from mmx.engine.spawn import end_ranks, spawn_rank
from mmx.errors import ConfigError, DeviceLostError, LaunchError
from mmx.grammar.constraints import Masks, with_masks
from mmx.layout import Layout
from mmx.protocol import encode_frame

log = logging.getLogger("mmx.engine")

PROGRESS_SECONDS = 10.0
# Within this time a connection must say that it is a rank.
HELLO_SECONDS = 5.0
# How long an exception of a collective waits for the news which rank was lost.
REASON_SECONDS = SILENCE_SECONDS + 2 * BEAT_SECONDS
STOP_SECONDS = 3.0


class Lost(Exception):  # noqa: N818
    """A rank is gone; ``exit_code`` is what its last word asks for."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Peer:
    """One other rank, as rank 0 sees it."""

    def __init__(self, line: Line, hello: Hello) -> None:
        self.line = line
        self.rank = hello.rank
        self.name = f"rank {hello.rank} ({hello.host}, process {hello.pid})"
        self.beat = Beat(step=0, num_calls=0, doing=None)
        self.heard = time.monotonic()

    def describe(self) -> str:
        return f"rank {self.rank} is in {_doing(self.beat)}"


def _doing(beat: Beat) -> str:
    return f"{beat.doing or 'its own work'} (step {beat.step}, call {beat.num_calls})"


class Leader:
    """The connections to all other ranks. ``on_lost`` is called once, from the watching thread."""

    def __init__(
        self, config: EngineConfig, runner_module: str, calls: CallLog, on_lost: Callable[[Lost], None]
    ) -> None:
        self.config = config
        self.calls = calls
        self.step = 0
        self.lost: Lost | None = None
        self._on_lost = on_lost
        self._peers: dict[int, _Peer] = {}
        self._sampled: dict[tuple[int, int], list[SampledToken]] = {}  # by step and rank
        self._began: dict[int, float] = {}  # steps that have not ended
        self._news = threading.Condition()
        self._closing = False
        self._children: list[subprocess.Popen[bytes]] = []
        place = config.place
        self._listener = _listen(place.address, place.port)
        self.port: int = self._listener.getsockname()[1]
        num_local = config.parallel.world_size if place.num_local is None else place.num_local
        if not place.single:
            here = msgspec.structs.replace(config, place=msgspec.structs.replace(place, port=self.port))
            for rank in range(1, num_local):
                self._children.append(spawn_rank(here, runner_module, rank, rank, num_local))
        log.info(
            "rank 0 waits for %d ranks at %s port %d (incoming), told by %s",
            *(self.num_others, place.address, self.port, place.source),
        )

    @property
    def num_others(self) -> int:
        return self.config.parallel.world_size - 1

    # ---- coming together ---------------------------------------------------------------------------------

    def gather(self) -> int:
        """Wait until all ranks are here and agree; returns the port for the collectives' store."""
        ours, deadline = facts(self.config), time.monotonic() + self.config.parallel.rendezvous_timeout
        reported = time.monotonic()
        self._listener.settimeout(0.2)
        while len(self._peers) < self.num_others:
            try:
                self._accept(ours)
            except TimeoutError:
                self._check_children()
            now = time.monotonic()
            if now >= deadline:
                raise self._refuse(LaunchError(self._missing(self.config.parallel.rendezvous_timeout)))
            if now - reported >= PROGRESS_SECONDS:
                reported = now
                log.info("still waiting for ranks %s", self._absent())
        self._listener.close()
        with _listen(self.config.place.address, 0) as free:
            port: int = free.getsockname()[1]
        for peer in self._peers.values():
            peer.line.send(Welcome(port=port))
            peer.heard = time.monotonic()
        log.info("all ranks are here; collectives meet at port %d (incoming) and ports of their own", port)
        threading.Thread(target=self._watch, name="mmx-ranks", daemon=True).start()
        return port

    def _accept(self, ours: dict[str, str]) -> None:
        sock, address = self._listener.accept()
        sock.settimeout(HELLO_SECONDS)
        line = Line(sock)
        try:
            words = line.first()
        except (TimeoutError, msgspec.DecodeError):
            words = []
        if not words or not isinstance(words[0], Hello):
            log.warning("something at %s connected that is no rank", address[0])
            sock.close()
            return
        sock.settimeout(None)
        hello = words[0]
        peer = _Peer(line, hello)
        taken = hello.rank in self._peers or not 0 < hello.rank <= self.num_others
        self._peers.setdefault(hello.rank, peer)
        if (different := difference(ours, hello.facts)) is not None:
            raise self._refuse(ConfigError(f"{peer.name} does not fit: {different}; start all ranks alike"))
        if taken:
            world = f"{self.num_others + 1} ranks ({self.config.parallel.describe_world()})"
            raise self._refuse(ConfigError(f"{peer.name} is one too many: rank 0 was started for {world}"))

    def _refuse(self, error: LaunchError | ConfigError) -> LaunchError | ConfigError:
        for peer in self._peers.values():
            peer.line.send(Refused(message=str(error), exit_code=error.exit_code))
        self.end()
        return error

    def _absent(self) -> str:
        return ", ".join(str(r) for r in range(1, self.num_others + 1) if r not in self._peers)

    def _missing(self, timeout: float) -> str:
        present = ", ".join(["0", *map(str, sorted(self._peers))])
        return (
            f"ranks {self._absent()} did not come to {self.config.place.address} port {self.port} within "
            f"{timeout:g} s; here are ranks {present} of {self.num_others + 1} "
            f"({self.config.parallel.describe_world()})"
        )

    def _check_children(self) -> None:
        for rank, child in enumerate(self._children, 1):
            if child.poll() is not None and rank not in self._peers:
                message = f"rank {rank} ended with exit code {child.returncode} before it had said anything"
                raise self._refuse(LaunchError(message))

    # ---- steps -------------------------------------------------------------------------------------------

    def begin(self, batch: ScheduledBatch) -> None:
        """Hand a step to all ranks."""
        if self.lost is not None:
            raise DeviceLostError(str(self.lost))
        with self._news:
            self.step = batch.step
            self._began[batch.step] = time.monotonic()
        data = encode_frame(Step(batch=batch))
        for peer in self._peers.values():
            try:
                peer.line.send_frame(data)
            except OSError as error:
                raise self.reason(error) from error

    def collect(self, step: int, ranks: Sequence[int]) -> list[SampledToken]:
        """What these ranks sampled in a step, which has then ended."""
        keys = [(step, rank) for rank in ranks]
        with self._news:
            self._news.wait_for(lambda: self.lost is not None or all(key in self._sampled for key in keys))
            if self.lost is None:
                del self._began[step]
                return [token for key in keys for token in self._sampled.pop(key)]
        raise DeviceLostError(str(self.lost))

    def reason(self, error: Exception) -> DeviceLostError:
        """What to say about an exception in a step: the rank that was lost, else the exception itself. With
        one rank out of step nothing can go on."""
        with self._news:
            if isinstance(error, OSError) or self.calls.current is not None:
                self._news.wait_for(lambda: self.lost is not None, REASON_SECONDS)
            if self.lost is not None:
                return DeviceLostError(str(self.lost))
        return DeviceLostError(f"rank 0 failed in step {self.step}: {type(error).__name__}: {error}")

    # ---- watching ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for peer in self._peers.values():
            selector.register(peer.line.sock, selectors.EVENT_READ, peer)
        while self.lost is None and not self._closing:
            for key, _ in selector.select(BEAT_SECONDS / 4):
                self._hear(key.data)
            now = time.monotonic()
            for peer in self._peers.values():
                if now - peer.heard > SILENCE_SECONDS:
                    self._lose(f"{peer.name} has been silent for {SILENCE_SECONDS:g} s", peer)
            limit = self.config.parallel.step_timeout
            with self._news:
                late = [step for step, began in self._began.items() if now - began > limit]
            if late:
                self._lose(f"step {late[0]} has not ended within {limit:g} s", None)

    def _hear(self, peer: _Peer) -> None:
        words = peer.line.receive()
        peer.heard = time.monotonic()
        if words is None:
            self._lose(f"{peer.name} was lost: its connection is closed", peer)
        for word in words or []:
            match word:
                case Beat():
                    peer.beat = word
                case Sampled():
                    with self._news:
                        self._sampled[word.step, peer.rank] = word.tokens
                        self._news.notify_all()
                case Gone():
                    self._lose(f"{peer.name} ended: {word.message}", None, word.exit_code)

    def _lose(self, what: str, gone: _Peer | None, exit_code: int = 1) -> None:
        if self._closing or self.lost is not None:
            return
        own = Beat(step=self.step, num_calls=self.calls.num_calls, doing=self.calls.current)
        others = [f"rank 0 is in {_doing(own)}"]
        others += [peer.describe() for peer in self._peers.values() if peer is not gone]
        with self._news:
            self.lost = Lost(f"{what}; {', '.join(others)}", exit_code)
            self._news.notify_all()
        log.error("%s", self.lost)
        # Why first: a stopped process would outlive its parent, and who waits in a collective is freed.
        end_ranks(self._children, 0.0)
        self._on_lost(self.lost)

    # ---- the end -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Tell all ranks that there are no more steps."""
        self._closing = True
        for peer in self._peers.values():
            try:
                peer.line.send(Stop())
            except OSError:
                log.warning("%s could not be told to stop: it has gone", peer.name)

    def wait(self) -> None:
        """Give the ranks of this machine a moment to end after ``stop``."""
        end_ranks(self._children, STOP_SECONDS)

    def end(self) -> None:
        """End the ranks of this machine at once; those of others end with their connection."""
        self._closing = True
        end_ranks(self._children, 0.0)
        for peer in self._peers.values():
            peer.line.sock.close()


class RankedRunner:
    """The runner of rank 0 with the other ranks behind it, as the engine sees one runner."""

    def __init__(self, runner: Any, leader: Leader, layout: Layout) -> None:
        self.runner = runner
        self.num_blocks: int = runner.num_blocks
        self.block_size: int = runner.block_size
        self.max_model_len: int = runner.max_model_len
        self.max_model_len_reason: str = runner.max_model_len_reason
        self.vocab_size: int = runner.vocab_size
        self.eos_token_ids: tuple[int, ...] = runner.eos_token_ids
        self.family: str = runner.family
        self.device: str = runner.device
        self.dtype: str = runner.dtype
        self.num_groups = layout.dp
        self.asynchronous: bool = runner.asynchronous
        self._leader = leader
        self._first_ranks = layout.first_ranks()[1:]

    def launch(self, batch: ScheduledBatch, masks: Masks) -> _Flight:
        """One step on all ranks. Token masks travel with it, so they are waited for first. Raises
        DeviceLostError if a rank is lost in it."""
        batch = with_masks(batch, masks)
        self._leader.begin(batch)
        try:
            return _Flight(batch, self.runner.launch(batch), self._leader, self._first_ranks)
        except Exception as error:
            raise self._leader.reason(error) from error

    def close(self) -> None:
        """End all ranks; nothing can be run afterwards."""
        self._leader.stop()
        self.runner.close()
        self._leader.wait()


class _Flight(NamedTuple):
    """A step on all ranks."""

    batch: ScheduledBatch
    own: Any
    leader: Leader
    first_ranks: list[int]

    def result(self) -> list[SampledToken]:
        try:
            sampled: list[SampledToken] = self.own.result()
        except Exception as error:
            raise self.leader.reason(error) from error
        sampled = sampled + self.leader.collect(self.batch.step, self.first_ranks)
        if not self.first_ranks:
            return sampled
        results = {token.request_id: token for token in sampled}
        return [results[seq.request_id] for seq in self.batch.seqs if seq.samples]


def _listen(address: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(os.cpu_count() or 1)
    except OSError as error:
        why = error.strerror or error
        text = f"rank 0 can not listen on {address} port {port} for the other ranks: {why}"
        raise LaunchError(text) from None
    return sock
