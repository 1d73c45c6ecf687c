"""Pages of other origins: which of them may read answers (CORS)."""

from __future__ import annotations

from aiohttp import hdrs, web

from mmx.server.settings import AccessSettings

MAX_AGE_SECONDS = "600"
_EXPOSED = "X-Request-Id, Retry-After"


class CrossOrigin:
    """The rules of one server; without ``allowed_origins`` no header is sent."""

    def __init__(self, settings: AccessSettings) -> None:
        self._origins = frozenset(settings.allowed_origins)
        self._methods = ", ".join(settings.allowed_methods)
        self._headers = ", ".join(settings.allowed_headers)
        self._credentials = settings.allow_credentials

    @property
    def enabled(self) -> bool:
        return bool(self._origins)

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers for the origin of the request, if it is a known one."""
        origin = request.headers.get(hdrs.ORIGIN)
        if not self._origins or origin is None:
            return
        everybody = "*" in self._origins
        if not everybody and origin not in self._origins:
            return
        # Why not "*" with credentials: browsers refuse it.
        named = not everybody or self._credentials
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin if named else "*"
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        if named:
            response.headers[hdrs.VARY] = hdrs.ORIGIN
        if self._credentials:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"

    async def preflight(self, request: web.Request) -> web.Response:
        """Answer OPTIONS: what a page may ask for."""
        asked_method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, "")
        asked_headers = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: asked_method if self._methods == "*" else self._methods,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: asked_headers if self._headers == "*" else self._headers,
            hdrs.ACCESS_CONTROL_MAX_AGE: MAX_AGE_SECONDS,
        }
        return web.Response(status=204, headers={name: value for name, value in headers.items() if value})
