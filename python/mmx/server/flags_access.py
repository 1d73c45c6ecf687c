"""Flags of who may ask what: keys, other origins, encryption."""

from __future__ import annotations

import json

from mmx.server.flag_kinds import BOOL, TEXT, Flag, row


def _items(value: tuple[str, ...]) -> str | None:
    """vLLM writes these lists as one JSON text."""
    try:
        as_list(value)
    except ValueError:
        return f"expected words or one JSON list of strings, got {value[0]!r:.64}"
    return None


def as_list(value: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a list flag, given one by one or as one JSON list. ValueError if it is neither."""
    if len(value) != 1 or not value[0].startswith("["):
        return value
    items = json.loads(value[0])
    if not all(isinstance(item, str) for item in items):
        raise ValueError("not a list of strings")
    return tuple(items)


def access() -> list[Flag]:
    """The rows of the table."""
    return [
        row(
            "api_key", TEXT, (), "http.api_keys", "keys of which a request must bring one", many=True,
            env=("VLLM_API_KEY",),
        ),
        row(
            "admin_api_key", TEXT, (), "access.admin_api_keys",
            "keys for control endpoints (profiles, caches, server_info); default: those of --api-key",
            many=True,
        ),
        row("api_key_file", TEXT, None, "http", "file with one key a line, reread on SIGHUP"),
        row(
            "allowed_origins", TEXT, (), "access",
            "origins whose pages may read answers, * = all; default: no CORS headers", many=True,
            refuse=_items,
        ),
        row(
            "allowed_methods", TEXT, ("*",), "access", "methods that such pages may use", many=True,
            refuse=_items,
        ),
        row(
            "allowed_headers", TEXT, ("*",), "access", "request headers that such pages may send", many=True,
            refuse=_items,
        ),
        row("allow_credentials", BOOL, False, "access", "such pages may send cookies and keys of their own"),
        row("ssl_certfile", TEXT, None, "access", "certificate chain; HTTPS instead of HTTP"),
        row(
            "ssl_keyfile", TEXT, None, "access", "private key of the certificate; default: in --ssl-certfile",
        ),
        row("ssl_ca_certs", TEXT, None, "access", "authorities of client certificates"),
        row(
            "ssl_cert_reqs", TEXT, "0", "access",
            "client certificates: 0 = not asked for, 1 = accepted, 2 = required", choices=("0", "1", "2"),
        ),
        row(
            "enable_ssl_refresh", BOOL, False, "access.ssl_refresh",
            "read certificate and key again when their files change",
        ),
    ]  # fmt: skip
