"""Reading request bodies under limits."""

from __future__ import annotations

import asyncio
import re

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from mmx.server.errors import ApiError, clip

# Seconds without a single byte after which a half-sent body is given up.
BODY_IDLE_TIMEOUT = 30.0
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body, expanded by aiohttp if it is compressed; never holds much more than ``limit`` bytes
    of it, and answers 413 from the declared length before reading any."""
    check_headers(request, limit)
    content = request.content
    body = bytearray()
    while True:
        try:
            body += content.read_nowait(-1)
            if len(body) > limit:
                raise _too_large(limit)
            if content.at_eof():
                return bytes(body)
            body += await asyncio.wait_for(content.readany(), BODY_IDLE_TIMEOUT)
        except asyncio.TimeoutError:
            raise ApiError("body_timeout", "the request body did not arrive in time", close=True) from None
        except (HttpProcessingError, ClientPayloadError, web.RequestPayloadError):
            raise ApiError("invalid_json", "the request body could not be read", close=True) from None


def check_headers(request: web.Request, limit: int) -> None:
    """Refuse what the headers alone give away: size, type and encoding."""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise _too_large(limit)
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("identity", "gzip", "deflate"):
        text = f"Content-Encoding must be gzip or deflate, got {clip(encoding)!r}"
        raise ApiError("unsupported_media_type", text, close=True)
    header = request.headers.get("Content-Type")
    if header is None:
        return
    kind, _, parameters = header.partition(";")
    charset = _CHARSET.search(parameters)
    plain = charset is None or charset[1].lower() in ("utf-8", "utf8")
    if kind.strip().lower() != "application/json" or not plain:
        raise ApiError(
            "unsupported_media_type", f"Content-Type must be application/json in utf-8, got {clip(header)!r}"
        )


def _too_large(limit: int) -> ApiError:
    return ApiError("request_too_large", f"the request body is larger than the limit of {limit} bytes")
