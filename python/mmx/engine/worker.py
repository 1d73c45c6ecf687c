"""The engine process: ``python -m mmx.engine.worker --fd N --config JSON [--runner MODULE]``.

``N`` is an inherited, connected stream socket; ``MODULE.build_runner(config, progress)`` makes the
runner. The parent decides about its life: it ends after ``Shutdown``, at end of file on the socket and
(Linux) when the parent dies. It ignores SIGINT and SIGTERM, because terminals and service managers
send them to all processes at once and the parent may still be draining.

Exit codes: 0 told to stop, 1 fault, 3 configuration refused, 4 weights refused, 5 not enough memory.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from mmx.config import EngineConfig
from mmx.engine.channel import SocketChannel
from mmx.engine.engine import Engine
from mmx.protocol import EngineDead, Loading

log = logging.getLogger("mmx.engine")

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
DEFAULT_RUNNER = "mmx.runner"
OUT_OF_MEMORY_EXIT_CODE = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    args = _parse(argv)
    _bind_to_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sock = socket.socket(fileno=args.fd)
    sock.set_inheritable(False)
    channel = SocketChannel(sock)
    try:
        return _serve(args.config, args.runner, channel)
    except BrokenPipeError:
        return 0  # Why: the parent has gone, nobody is left to tell.
    except Exception as error:
        code = OUT_OF_MEMORY_EXIT_CODE if isinstance(error, MemoryError) else getattr(error, "exit_code", 1)
        if code == 1:
            log.exception("the engine ends")
        message = str(error) or type(error).__name__
        try:
            channel.send([EngineDead(message=message, exit_code=code)])
        except OSError:
            log.error("could not tell the front end: %s", message)
        return code


def _serve(config: EngineConfig, runner_module: str, channel: SocketChannel) -> int:
    def progress(phase: str, fraction: float) -> None:
        channel.send([Loading(phase=phase, progress=fraction)])

    progress("import", 0.0)
    runner = importlib.import_module(runner_module).build_runner(config, progress)
    engine = Engine(config, runner, channel)
    channel.send([engine.ready()])
    engine.run()
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mmx.engine.worker", allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--config", type=_config, required=True)
    parser.add_argument("--runner", default=DEFAULT_RUNNER)
    return parser.parse_args(argv)


def _config(text: str) -> EngineConfig:
    return msgspec.json.decode(text, type=EngineConfig)


def _bind_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
