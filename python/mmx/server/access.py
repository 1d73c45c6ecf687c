"""API keys: where they come from and how a request shows one; signatures of what the server wrote."""

from __future__ import annotations

import base64
import hmac
import secrets
from pathlib import Path

from aiohttp import web

from mmx.server.errors import ApiError
from mmx.server.flag_kinds import EXIT_CONFIG, FlagError


class Keys:
    """The accepted API keys; without any, everybody is let in. ``admin`` keys open the control endpoints too,
    which the others then do not."""

    def __init__(self, keys: tuple[str, ...], file: str | None, admin: tuple[str, ...] = ()) -> None:
        self._given = keys
        self._admin = [key.encode() for key in admin]
        self._file = file
        self._keys: list[bytes] = []
        self.reload()

    def reload(self) -> None:
        """Read the key file again; FlagError (and the old keys stay) if that is not possible."""
        keys = list(self._given)
        if self._file is not None:
            try:
                lines = Path(self._file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as exc:
                raise FlagError(
                    f"--api-key-file {self._file!r} can not be read: {exc}", EXIT_CONFIG
                ) from None
            found = [line.strip() for line in lines if line.strip()]
            if not found:
                raise FlagError(f"--api-key-file {self._file!r} holds no key", EXIT_CONFIG)
            keys += found
        self._keys = [key.encode() for key in keys]

    def check(self, request: web.BaseRequest, *, admin: bool = False) -> None:
        """Raise 401 unless the request brings one of the keys; 403 if it is the wrong one for a control
        endpoint (``admin``)."""
        if not self._keys and not (admin and self._admin):
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        shown = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        candidate = shown.encode("utf-8", "surrogateescape")
        # Why: every key is compared in constant time, so neither length of match nor position shows.
        is_admin = sum(hmac.compare_digest(candidate, key) for key in self._admin) > 0
        is_known = sum(hmac.compare_digest(candidate, key) for key in self._keys) > 0
        if admin and self._admin and is_known and not is_admin:
            raise ApiError("permission_denied", "this endpoint needs the admin key", status=403)
        if not is_admin and (not is_known or (admin and self._admin)):
            raise ApiError(
                "invalid_api_key",
                "a valid API key is required, as Authorization: Bearer KEY or x-api-key: KEY",
            )


class Signer:
    """Signs text with ``key``, a random one if there is none."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key is not None else secrets.token_bytes(32)

    def sign(self, text: str) -> str:
        """HMAC-SHA256 of ``text`` in base64."""
        return base64.b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode()

    def wrote(self, text: str, signature: str) -> bool:
        """Whether ``signature`` is that of ``text``."""
        return hmac.compare_digest(self.sign(text).encode(), signature.encode())
