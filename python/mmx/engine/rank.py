"""The process of a rank other than 0: ``python -m mmx.engine.rank --config JSON [--runner MODULE]``.

``place`` of the configuration says which rank it is, or which ones it starts: a machine without rank 0 has
one process that starts the ranks of the machine and ends all of them when one ends.

Exit codes: those of ``mmx.engine.worker``, and 6 where the ranks do not come together.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from mmx.backend import use_local_device
from mmx.batch import ScheduledBatch
from mmx.config import EngineConfig
from mmx.distributed import CallLog
from mmx.engine.agreement import facts
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
from mmx.engine.process import bind_to_parent, exit_code_of, parse_arguments, spare_what_is_there
from mmx.engine.ranked import join_ranks
from mmx.engine.spawn import end_ranks, spawn_rank
from mmx.errors import LaunchError
from mmx.logs import configure_logging

log = logging.getLogger("mmx.engine")

RETRY_SECONDS = 0.2
CHILD_POLL_SECONDS = 0.2


class RefusedError(Exception):
    """Rank 0 does not want this rank."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.exit_code = refused.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    args = parse_arguments("mmx.engine.rank", argv)
    config: EngineConfig = args.config
    who = f"rank {config.place.first_rank}" if config.place.single else "ranks"
    configure_logging(config.place.log_level, config.place.log_format, who)
    if not config.place.single:
        return _start_machine(config, args.runner)
    bind_to_parent(config.place.tied)
    try:
        follower = Follower(config)
    except (LaunchError, RefusedError, OSError) as error:
        log.error("%s", error)
        return exit_code_of(error)
    return follower.run(args.runner)


def _start_machine(config: EngineConfig, runner_module: str) -> int:
    """Start the ranks of this machine; the first that ends takes the others with it."""
    place = config.place
    num_local = place.num_local or 1
    children = [
        spawn_rank(config, runner_module, place.first_rank + i, i, num_local) for i in range(num_local)
    ]
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set() and all(child.poll() is None for child in children):
        time.sleep(CHILD_POLL_SECONDS)
    codes = [code for child in children if (code := child.poll()) is not None]
    end_ranks(children, 1.0 if not any(codes) else 0.0)
    return 0 if stopped.is_set() else max(map(abs, codes))


class Follower:
    """A rank that does what rank 0 says."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.rank = config.place.first_rank
        self.calls = CallLog()
        self._step = 0
        self._flights: queue.SimpleQueue[tuple[int, Any]] | None = queue.SimpleQueue()
        self._steps: queue.SimpleQueue[ScheduledBatch | None] = queue.SimpleQueue()
        self._line = self._connect()
        self._store_port = self._introduce()

    def run(self, runner_module: str) -> int:
        """Compute steps until rank 0 says stop; returns the exit code."""
        threading.Thread(target=self._listen, name="mmx-rank-0", daemon=True).start()
        threading.Thread(target=self._beat, name="mmx-beat", daemon=True).start()
        try:
            ranks, runner = join_ranks(
                self.config, runner_module, self.rank, self._store_port, self.calls, lambda phase, done: None
            )
            if self.rank in ranks.layout.first_ranks():
                threading.Thread(target=self._report, name="mmx-results", daemon=True).start()
            else:
                self._flights = None
            spare_what_is_there()
            while (batch := self._steps.get()) is not None:
                self._step = batch.step
                flight = runner.launch(batch)
                if self._flights is not None:
                    self._flights.put((batch.step, flight))
            runner.close()
        except Exception as error:
            self._end(error)
        return 0

    def _end(self, error: Exception) -> NoReturn:
        """Tell rank 0 why, and end."""
        log.exception("this rank ends")
        doing = f" in {self.calls.current}" if self.calls.current else ""
        gone = Gone(message=f"{type(error).__name__}{doing}: {error}", exit_code=exit_code_of(error))
        try:
            self._line.send(gone)
        except OSError:
            log.error("rank 0 could not be told")
        # Why not return: collectives that will never end must not keep the process.
        os._exit(gone.exit_code)

    def _connect(self) -> Line:
        place, timeout = self.config.place, self.config.parallel.rendezvous_timeout
        deadline = time.monotonic() + timeout
        while True:
            try:
                sock = socket.create_connection((place.address, place.port), timeout)
                sock.settimeout(None)
                # A beat that nobody acknowledges for so long ends the connection: the network is cut.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE_SECONDS))
                return Line(sock)
            except OSError as error:
                if time.monotonic() >= deadline:
                    text = f"nobody answered at {place.address} port {place.port} for {timeout:g} s: {error}"
                    raise LaunchError(f"{text}; is rank 0 running there?") from None
            time.sleep(RETRY_SECONDS)

    def _introduce(self) -> int:
        """Say who this is; the port of the collectives' store once everybody is here."""
        hello = Hello(rank=self.rank, host=socket.gethostname(), pid=os.getpid(), facts=facts(self.config))
        self._line.send(hello)
        match self._line.first():
            case [Welcome(port=port), *words]:
                for word in words:
                    self._take(word)
                return port
            case [Refused() as refused, *_]:
                raise RefusedError(refused)
        raise LaunchError("rank 0 ended before all ranks were there")

    def _listen(self) -> None:
        while (words := self._line.receive()) is not None:
            for word in words:
                self._take(word)
                if isinstance(word, Stop):
                    return
        log.error("rank 0 has gone, so this one ends")
        os._exit(1)

    def _take(self, word: object) -> None:
        if isinstance(word, Step):
            self._steps.put(word.batch)
        elif isinstance(word, Stop):
            self._steps.put(None)

    def _report(self) -> None:
        """Tell rank 0 what this rank samples. Why beside the steps: the next one is launched meanwhile."""
        assert self._flights is not None
        try:
            # Why: each thread has a device of its own, and to free an event would set up the machine's first.
            use_local_device(self.config.device, self.config.place.local_rank)
            while True:
                step, flight = self._flights.get()
                self._line.send(Sampled(step=step, tokens=flight.result()))
        except Exception as error:
            self._end(error)

    def _beat(self) -> None:
        while True:
            beat = Beat(step=self._step, num_calls=self.calls.num_calls, doing=self.calls.current)
            try:
                self._line.send(beat)
            except OSError:
                return  # Why: the other thread notices the end of the connection as well, and acts.
            time.sleep(BEAT_SECONDS)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
