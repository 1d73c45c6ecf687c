"""POST /start_profile and /stop_profile: records of the engine's steps for a trace viewer."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
from aiohttp import web

from mmx.protocol import Profile
from mmx.server.body import read_body
from mmx.server.decode import decode_object, decode_request
from mmx.server.errors import ApiError, invalid, unsupported
from mmx.server.state import STATE, ServerState

_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REFUSED = {
    "ranks": "only rank 0 is recorded",
    "activities": "host and device are recorded",
}


class ProfileRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything is optional, and so is the body."""

    num_steps: int | None = None
    with_stack: bool | None = None
    prefix: str | None = None


async def start_profile(request: web.Request) -> web.StreamResponse:
    """Record from now on, or the next ``num_steps`` steps."""
    state, folder = _enabled(request)
    data = await read_body(request, state.config.http.max_body_bytes)
    asked, unknown = decode_request(decode_object(data) if data else {}, ProfileRequest, _REFUSED)
    if unknown:
        raise unsupported(unknown[0], "it is not a field of this request")
    if asked.num_steps is not None and asked.num_steps < 1:
        raise invalid("num_steps", f"must be at least 1, got {asked.num_steps}")
    prefix = time.strftime("%Y%m%d-%H%M%S") if asked.prefix is None else asked.prefix
    if not _PREFIX.fullmatch(prefix):
        raise invalid("prefix", "must be 1 to 64 of A-Z a-z 0-9 _ . -")
    with_stack = state.config.log.profiler_with_stack if asked.with_stack is None else asked.with_stack
    path = str(folder / f"{prefix}-rank0.json.gz")
    engine, _, _ = state.serving()
    done = await engine.profile(Profile(path=path, num_steps=asked.num_steps, with_stack=with_stack))
    if done.error is not None:
        raise ApiError("conflict_error", done.error)
    return web.json_response({"file": Path(path).name})


async def stop_profile(request: web.Request) -> web.StreamResponse:
    """End the record; the answer names its file."""
    state, _ = _enabled(request)
    engine, _, _ = state.serving()
    done = await engine.profile(Profile())
    if done.error is not None:
        raise ApiError("conflict_error", done.error)
    return web.json_response({"files": [Path(done.path).name]})


def _enabled(request: web.Request) -> tuple[ServerState, Path]:
    state = request.app[STATE]
    folder = state.config.log.profiler_dir
    if folder is None:
        raise ApiError("profiler_disabled", "profiles need a folder; start the server with --profiler-dir")
    return state, Path(folder).absolute()
