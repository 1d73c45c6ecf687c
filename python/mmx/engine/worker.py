"""The engine process: ``python -m mmx.engine.worker --fd N --config JSON [--runner MODULE]``.

``N`` is an inherited, connected stream socket; ``MODULE.build_runner(config, progress)`` makes the
runner. The parent decides about its life: it ends after ``Shutdown``, at end of file on the socket and
(Linux) when the parent dies. It ignores SIGINT and SIGTERM, because terminals and service managers
send them to all processes at once and the parent may still be draining.

Exit codes: 0 told to stop, 1 fault or a lost rank, 3 configuration refused, 4 weights refused, 5 not enough
memory, 6 the ranks do not come together.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from mmx.config import EngineConfig
from mmx.engine.channel import SocketChannel
from mmx.engine.engine import Engine
from mmx.engine.process import bind_to_parent, exit_code_of, parse_arguments, spare_what_is_there
from mmx.errors import DeviceLostError
from mmx.logs import configure_logging
from mmx.protocol import EngineDead, Loading

log = logging.getLogger("mmx.engine")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    args = parse_arguments("mmx.engine.worker", argv, fd=True)
    bind_to_parent()
    configure_logging(args.config.place.log_level, args.config.place.log_format)
    sock = socket.socket(fileno=args.fd)
    sock.set_inheritable(False)
    channel = SocketChannel(sock)
    try:
        return _serve(args.config, args.runner, channel)
    except BrokenPipeError:
        return 0  # Why: the parent has gone, nobody is left to tell.
    except Exception as error:
        code = exit_code_of(error)
        if code == 1:
            log.exception("the engine ends")
        _tell(channel, error, code)
        if isinstance(error, DeviceLostError):
            # Why at once: torch frees memory as the interpreter ends, and aborts if the device refuses that.
            logging.shutdown()
            os._exit(code)
        return code


def _tell(channel: SocketChannel, error: Exception, code: int) -> None:
    message = str(error) or type(error).__name__
    try:
        channel.send([EngineDead(message=message, exit_code=code)])
    except OSError:
        log.error("could not tell the front end: %s", message)


def _serve(config: EngineConfig, runner_module: str, channel: SocketChannel) -> int:
    def progress(phase: str, fraction: float) -> None:
        channel.send([Loading(phase=phase, progress=fraction)])

    def on_lost(lost: Exception) -> None:
        # Why at once: the main thread may wait for ever in a collective that one rank will not join.
        code = exit_code_of(lost)
        _tell(channel, lost, code)
        os._exit(code)

    progress("import", 0.0)
    runner: Any
    if config.parallel.world_size > 1:
        # Why here: runners without a model do not wait for torch.
        from mmx.engine.ranked import lead_ranks

        runner = lead_ranks(config, runner_module, progress, on_lost)
    else:
        runner = importlib.import_module(runner_module).build_runner(config, progress)
    engine = Engine(config, runner, channel)
    spare_what_is_there()
    channel.send([engine.ready()])
    engine.run()
    if config.parallel.world_size > 1:
        runner.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
