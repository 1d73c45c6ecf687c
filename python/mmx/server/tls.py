"""HTTPS: the context of the listening socket, and its refresh."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from mmx.server.flag_kinds import EXIT_CONFIG, FlagError
from mmx.server.settings import AccessSettings

log = logging.getLogger("mmx.server")

REFRESH_SECONDS = 5.0

_CLIENTS = {"0": ssl.CERT_NONE, "1": ssl.CERT_OPTIONAL, "2": ssl.CERT_REQUIRED}


class Certificate:
    """The server's certificate; ``context`` is None without one. FlagError if a file can not be used."""

    def __init__(self, settings: AccessSettings) -> None:
        self._settings = settings
        self.context: ssl.SSLContext | None = None
        if settings.ssl_certfile is None:
            if settings.ssl_keyfile is not None or settings.ssl_ca_certs is not None:
                raise FlagError("--ssl-keyfile and --ssl-ca-certs need --ssl-certfile", EXIT_CONFIG)
            return
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._seen = self._times()
        self._load()
        if settings.ssl_ca_certs is not None:
            try:
                self.context.load_verify_locations(settings.ssl_ca_certs)
            except OSError as error:
                text = f"--ssl-ca-certs {settings.ssl_ca_certs!r} can not be used: {error}"
                raise FlagError(text, EXIT_CONFIG) from None
        self.context.verify_mode = _CLIENTS[settings.ssl_cert_reqs]

    def _load(self) -> None:
        settings = self._settings
        assert self.context is not None and settings.ssl_certfile is not None
        try:
            self.context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        except OSError as error:  # ssl.SSLError is one
            text = f"--ssl-certfile {settings.ssl_certfile!r} can not be used: {error}"
            raise FlagError(text, EXIT_CONFIG) from None

    def _times(self) -> list[int]:
        names = (self._settings.ssl_certfile, self._settings.ssl_keyfile)
        paths = [Path(name) for name in names if name is not None]
        return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]

    async def refresh(self) -> None:
        """For ever: load the files again when they change. New connections then show the new certificate."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self.refresh_once()

    def refresh_once(self) -> bool:
        """Load the files again if they have changed; whether the certificate is a new one."""
        times = self._times()
        if times == self._seen:
            return False
        self._seen = times
        try:
            self._load()
        except FlagError as error:
            log.error("%s; the old certificate stays", error)
            return False
        log.info("certificate read again")
        return True
