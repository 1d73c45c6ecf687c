"""``python -m mmx.server [MODEL] [flags]``; ``mmx serve`` is the same program.

Exit codes: 0 fine, 1 run error, 2 wrong usage, 3 configuration refused, 4 weights refused, 5 not enough
memory, 6 port, or ranks that do not come together.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

import msgspec
import uvloop
from aiohttp import web

import mmx
from mmx.engine.client import EngineClient, start_ranks
from mmx.env import environment
from mmx.errors import ConfigError, LaunchError
from mmx.launch import find_place
from mmx.logs import configure_logging
from mmx.model_path import model_path
from mmx.server.agreement import check_agreement, check_layout
from mmx.server.app import create_app
from mmx.server.flag_help import help_markdown, help_text
from mmx.server.flag_kinds import FlagError
from mmx.server.guides import guides_markdown
from mmx.server.lifecycle import SUPERVISOR, Supervisor
from mmx.server.settings import describe, load_config, with_place
from mmx.server.state import ServerState
from mmx.server.tls import Certificate

log = logging.getLogger("mmx.server")

EXIT_PORT = 6
KEEP_ALIVE_SECONDS = 75.0
# Handlers that still write their last bytes when the engine is gone.
HANDLER_GRACE_SECONDS = 5.0
BACKLOG = 2048


def main(argv: Sequence[str] | None = None, runner: str = "model") -> int:
    """Serve until told to stop; returns the exit code. ``runner`` is handed to the engine client; what
    follows a ``?`` in it are options of that runner."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if any(word in ("--help", "-h") for word in arguments):
        print(help_text())
        return 0
    if "--help=markdown" in arguments:
        print(help_markdown())
        return 0
    if "--help=guides" in arguments:
        print(guides_markdown())
        return 0
    if "--version" in arguments:
        print(f"mmx {mmx.__version__}")
        return 0
    try:
        config = load_config(arguments, environment())
        configure_logging(config.log.level, config.log.format)
        place = find_place(config.parallel, config.launch, environment())
        config = with_place(config, place)
        if place.first_rank > 0:
            folder = model_path(config.engine.model or None)
            check_layout(config.parallel, folder)
            start_ranks(msgspec.structs.replace(config.engine, model=str(folder)), runner)
        sock = bind(config.http.host, config.http.port)
        folder = model_path(config.engine.model or None)
        check_agreement(config.checkpoint, folder)
        check_layout(config.parallel, folder)
        state = ServerState(config, folder)
        certificate = Certificate(config.access)
    except (FlagError, ConfigError, LaunchError, PortError) as error:
        print(f"mmx serve: {error}", file=sys.stderr)
        return error.exit_code
    return uvloop.run(serve(state, sock, runner, certificate))


class PortError(OSError):
    """The address can not be listened on."""

    exit_code = EXIT_PORT


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, made before anything is loaded."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        raise PortError(f"can not listen on {host} port {port}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


async def serve(state: ServerState, sock: socket.socket, runner: str, certificate: Certificate) -> int:
    """Run the application on a listening socket until there is a reason to end."""
    config = state.config
    for note in config.notes:
        log.warning("%s", note)
    for line in describe(config):
        log.info("%s", line)
    name, mark, options = runner.partition("?")
    engine_config = msgspec.structs.replace(config.engine, model=f"{state.folder}{mark}{options}")
    app = create_app(state, lambda: EngineClient.start(engine_config, name))
    app_runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        shutdown_timeout=HANDLER_GRACE_SECONDS,
        logger=logging.getLogger("mmx.http"),
    )
    await app_runner.setup()
    supervisor = app[SUPERVISOR]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(_asked_to_stop, supervisor, signal.Signals(number).name))
    loop.add_signal_handler(signal.SIGHUP, partial(_reload_keys, state))
    refresh = asyncio.create_task(certificate.refresh()) if config.access.ssl_refresh else None
    try:
        await web.SockSite(app_runner, sock, backlog=BACKLOG, ssl_context=certificate.context).start()
        host, port = sock.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        log.info(
            "listening on %s://%s:%d, model in %s, seed %d",
            *("http" if certificate.context is None else "https", host, port),
            *(state.folder, config.engine.seed),
        )
        return await supervisor.finished
    finally:
        if refresh is not None:
            refresh.cancel()
        # Why first: handlers that wait for the engine can then tell their clients, and end.
        await supervisor.end()
        await app_runner.cleanup()
        log.info("the server has ended")


def _asked_to_stop(supervisor: Supervisor, name: str) -> None:
    log.info("%s received", name)
    supervisor.stop()


def _reload_keys(state: ServerState) -> None:
    try:
        state.keys.reload()
        log.info("API keys read again")
    except FlagError as error:
        log.error("%s", error)


if __name__ == "__main__":
    sys.exit(main())
