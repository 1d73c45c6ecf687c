"""Errors that clients see: one table of codes, one JSON form.

Texts are one sentence: what was wrong and what is allowed; no stack, no server path, and at most 64
characters of what the client sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_implemented_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

# Where the Messages API has another word.
_ANTHROPIC_TYPES = {
    409: "invalid_request_error",
    500: "api_error",
    501: "api_error",
    503: "overloaded_error",
}
ANTHROPIC_PATH = "/v1/messages"

_STATUS = {
    "invalid_api_key": 401,
    "model_not_found": 404,
    "not_found": 404,
    "profiler_disabled": 404,
    "not_supported_by_model": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "duplicate_request_id": 409,
    "conflict_error": 409,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "queue_full": 429,
    "server_error": 500,
    "numerical_error": 500,
    "loading": 503,
    "draining": 503,
    "engine_dead": 503,
    "deadline_exceeded": 504,
}


class ApiError(Exception):
    """A request is answered with ``code`` of the error table; codes that the table of special statuses
    does not name are the caller's fault (400). ``param`` is the field at fault;
    ``close`` ends the connection, whose state is unknown."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        *,
        status: int | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.status = status if status is not None else _STATUS.get(code, 400)
        self.retry_after = retry_after
        self._close = close

    def _type(self) -> str:
        return _TYPES.get(self.status) or _TYPES[500 if self.status >= 500 else 400]

    def object(self) -> dict[str, Any]:
        """The OpenAI error object."""
        kind = self._type()
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_object(self, request_id: str) -> dict[str, Any]:
        """The error object of the Messages API."""
        kind = _ANTHROPIC_TYPES.get(self.status) or self._type()
        error = {"type": kind, "message": self.message, "details": {"error_code": self.code}}
        return {"type": "error", "error": error, "request_id": request_id}

    def renamed(self, rename: Callable[[str], str]) -> ApiError:
        """The same error with the field names in its text and param replaced."""
        return ApiError(
            self.code,
            rename(self.message),
            rename(self.param) if self.param is not None else None,
            status=self.status,
            retry_after=self.retry_after,
            close=self._close,
        )

    def response(self, path: str, request_id: str) -> web.Response:
        """The answer in the form that clients of ``path`` read."""
        of_messages = path.startswith(ANTHROPIC_PATH)
        body = msgspec.json.encode(self.anthropic_object(request_id) if of_messages else self.object())
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        response = web.Response(
            status=self.status, body=body, content_type="application/json", headers=headers
        )
        if self._close:
            response.force_close()
        return response


def clip(value: object, limit: int = 64) -> str:
    """``value`` as it may stand in an error text."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def unsupported(param: str, why: str) -> ApiError:
    """A documented field whose feature this server does not have."""
    return ApiError("unsupported_parameter", f"{param} is not supported: {why}", param)


def invalid(param: str, problem: str, code: str = "invalid_value") -> ApiError:
    """A field with a wrong value: a sentence of its name and the ``problem``."""
    return ApiError(code, f"{param} {problem}", param)


def missing(param: str) -> ApiError:
    """A field that has to be there."""
    return invalid(param, "is required", "missing_required_parameter")
