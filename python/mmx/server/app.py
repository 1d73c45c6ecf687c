"""The application: routes, what happens around every handler, and the engine's life as a context."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import hdrs, web

from mmx.server import lifecycle
from mmx.server.body import check_headers
from mmx.server.errors import ANTHROPIC_PATH, ApiError, clip
from mmx.server.routes import ROUTES, Route
from mmx.server.state import REQUEST_ID, STATE, ServerState

log = logging.getLogger("mmx.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = re.compile(r"[!-~][ -~]{0,126}[!-~]|[!-~]")


def create_app(state: ServerState, start_engine: lifecycle.StartEngine) -> web.Application:
    """The server around ``state``; the engine starts with the application and ends with its cleanup."""
    app = web.Application(middlewares=[_around], client_max_size=state.config.http.max_body_bytes)
    app[STATE] = state
    for route in ROUTES:
        if route.path == "/metrics" and state.config.http.disable_metrics:
            continue
        for path in dict.fromkeys((route.path, route.path.rstrip("/") + "/")):
            app.router.add_route(
                route.method, path, _keyed(route, state), expect_handler=_expectation(route, state)
            )
            if route.method == hdrs.METH_GET:
                app.router.add_route(hdrs.METH_HEAD, path, _keyed(route, state))
    if state.cross_origin.enabled:
        app.router.add_route(hdrs.METH_OPTIONS, "/{path:.*}", state.cross_origin.preflight)
    app.on_response_prepare.append(_common_headers)

    async def engine_context(app: web.Application) -> AsyncIterator[None]:
        supervisor = lifecycle.Supervisor(state, start_engine)
        app[lifecycle.SUPERVISOR] = supervisor
        supervisor.begin()
        yield
        await supervisor.end()

    app.cleanup_ctx.append(engine_context)
    return app


def _keyed(route: Route, state: ServerState) -> Handler:
    """The route's handler behind the API key, where one is needed."""
    if not route.needs_key:
        return route.handler

    async def handler(request: web.Request) -> web.StreamResponse:
        state.keys.check(request, admin=route.admin)
        return await route.handler(request)

    return handler


def _expectation(
    route: Route, state: ServerState
) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Answer ``Expect: 100-continue`` by what the headers show, before the body is sent."""

    async def expect(request: web.Request) -> web.StreamResponse | None:
        _identify(request)
        try:
            if route.needs_key:
                state.keys.check(request, admin=route.admin)
            check_headers(request, state.config.http.max_body_bytes)
        except ApiError as error:
            return error.response(request.path, REQUEST_ID.get())
        if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
            refusal = ApiError("invalid_value", "only Expect: 100-continue is understood", status=417)
            return refusal.response(request.path, REQUEST_ID.get())
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
        return None

    return expect


@web.middleware
async def _around(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, turn errors into error objects, count."""
    state = request.app[STATE]
    _identify(request)
    try:
        response = await handler(request)
    except asyncio.CancelledError:
        _count(state, request, 499)
        raise
    except ConnectionResetError:
        log.debug("%s %s: the client left while it sent its request", REQUEST_ID.get(), request.path)
        response = web.Response(status=499)
    except Exception as fault:
        error = _as_api_error(request, fault)
        response = error.response(request.path, REQUEST_ID.get())
        if isinstance(fault, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(fault.allowed_methods))
    _count(state, request, response.status)
    return response


def _identify(request: web.Request) -> None:
    given = request.headers.get("X-Request-Id", "")
    REQUEST_ID.set(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)


def _as_api_error(request: web.Request, fault: Exception) -> ApiError:
    """What the client is told about an exception of a handler."""
    match fault:
        case ApiError():
            log.debug("%s %s: %d %s", REQUEST_ID.get(), request.path, fault.status, fault.message)
            return fault
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(fault.allowed_methods))
            return ApiError(
                "method_not_allowed", f"{clip(request.method)} is not allowed here, only {allowed}"
            )
        case web.HTTPNotFound():
            return ApiError("not_found", f"there is nothing at {clip(request.path)!r}")
        case web.HTTPException():
            return ApiError("invalid_value", fault.reason.lower(), status=fault.status)
    log.error("%s %s failed", REQUEST_ID.get(), request.path, exc_info=fault)
    return ApiError("server_error", f"internal error in request {REQUEST_ID.get()}")


def _count(state: ServerState, request: web.Request, status: int) -> None:
    """Paths are counted as the table of routes writes them, so that their number is bounded."""
    resource = request.match_info.route.resource
    state.metrics.http.value(resource.canonical if resource else "other", str(status)).add()


async def _common_headers(request: web.Request, response: web.StreamResponse) -> None:
    if REQUEST_ID.get():
        response.headers["X-Request-Id"] = REQUEST_ID.get()
        if request.path.startswith(ANTHROPIC_PATH):
            response.headers["request-id"] = REQUEST_ID.get()
    request.app[STATE].cross_origin.mark(request, response)
    response.headers.pop("Server", None)
