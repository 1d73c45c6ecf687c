"""Everything that is asked about the server rather than of the model, and what an operator may do to it."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

import mmx
from mmx.server.body import read_body
from mmx.server.decode import decode_object
from mmx.server.errors import ApiError, clip, invalid
from mmx.server.generation import canary
from mmx.server.metrics import OPENMETRICS_TYPE, TEXT_TYPE
from mmx.server.openapi import openapi_document
from mmx.server.settings import effective
from mmx.server.state import STATE, ServerState

CANARY_LIMIT_SECONDS = 20.0


async def live(request: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "alive"})


async def health(request: web.Request) -> web.StreamResponse:
    """200 only when able to serve."""
    state = request.app[STATE]
    return web.json_response(state.health(), status=200 if state.phase == "ready" else 503)


async def ready(request: web.Request) -> web.StreamResponse:
    """As health, and 503 also when the queue is full."""
    state = request.app[STATE]
    body, status = state.health(), 503
    if state.phase == "ready":
        engine, limits, _ = state.serving()
        if engine.num_open < limits.max_num_seqs + limits.max_num_queued_reqs:
            status = 200
        else:
            body["status"] = "full"
    return web.json_response(body, status=status)


async def health_generate(request: web.Request) -> web.StreamResponse:
    """200 if the engine generates within 20 seconds."""
    state = request.app[STATE]
    engine, _, front = state.serving()
    try:
        await asyncio.wait_for(canary(engine, front), CANARY_LIMIT_SECONDS)
    except (asyncio.TimeoutError, RuntimeError):
        raise ApiError("engine_dead", "the engine did not generate in time") from None
    return web.json_response({"status": "ready"})


async def version(request: web.Request) -> web.StreamResponse:
    engine = request.app[STATE].engine
    device = engine.ready.device if engine is not None and engine.ready is not None else None
    return web.json_response({"version": mmx.__version__, "device": device})


async def load(request: web.Request) -> web.StreamResponse:
    """How busy the engine is."""
    state = request.app[STATE]
    engine, limits, _ = state.serving()
    stats = engine.stats
    running = stats.num_running if stats is not None else 0
    waiting = max(engine.num_open - running, 0)
    # Each group of ranks has a pool of its own; the engine's figures are sums over them.
    total = stats.num_blocks if stats is not None else limits.num_blocks * state.config.parallel.num_groups
    free = stats.num_free_blocks if stats is not None else total
    body: dict[str, Any] = {
        "running": running,
        "waiting": waiting,
        "waiting_tokens": stats.num_waiting_tokens if stats is not None else 0,
        "kv_free_tokens": free * limits.block_size,
        "kv_total_tokens": total * limits.block_size,
        "estimated_wait_ms": 1000 * state.retry_after() if waiting else 0,
        "server_load": engine.num_open,
    }
    body["per_rank"] = [{"rank": 0, "running": running, "waiting": waiting}]
    return web.json_response(body)


def _card(state: ServerState, name: str) -> dict[str, Any]:
    _, limits, front = state.serving()
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "mmx",
        "root": name,
        "parent": None,
        "max_model_len": limits.max_model_len,
        "permission": [],
        "mmx": {
            "family": front.family or limits.model_family,
            "thinking_modes": {"m3": ["disabled", "adaptive", "enabled"], "m2": ["enabled"]}.get(
                front.family or "", []
            ),
            "modalities": ["text"],
            "dtype": limits.dtype,
        },
    }


async def models(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    return web.json_response({"object": "list", "data": [_card(state, name) for name in state.served_names]})


async def model(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    state.serving()
    return web.json_response(_card(state, state.answered_name(request.match_info["id"])))


async def metrics(request: web.Request) -> web.StreamResponse:
    openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
    page = request.app[STATE].metrics.page(openmetrics)
    return web.Response(body=page, headers={"Content-Type": OPENMETRICS_TYPE if openmetrics else TEXT_TYPE})


async def openapi(request: web.Request) -> web.StreamResponse:
    return web.json_response(openapi_document())


async def server_info(request: web.Request) -> web.StreamResponse:
    """Settings with their origin, keys masked, and what the engine made of them."""
    state = request.app[STATE]
    engine = state.engine
    body: dict[str, Any] = {"settings": effective(state.config), "status": state.phase}
    if engine is not None and engine.ready is not None:
        body["engine"] = {name: getattr(engine.ready, name) for name in engine.ready.__struct_fields__}
    return web.json_response(body)


# ---- control -----------------------------------------------------------------------------------------


async def reset_prefix_cache(request: web.Request) -> web.StreamResponse:
    """Forget cached pages that no running request uses."""
    engine, _, _ = request.app[STATE].serving()
    engine.reset_prefix_cache()
    return web.json_response({"success": True})


def _abort(state: ServerState, request_id: str) -> bool:
    sequences = state.live.get(request_id)
    if sequences is None or state.engine is None:
        return False
    state.engine.abort(sequences)
    return True


async def abort_by_path(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/requests/{id}."""
    request_id = request.match_info["id"]
    if not _abort(request.app[STATE], request_id):
        raise ApiError("not_found", f"no open request has the id {clip(request_id)!r}")
    return web.json_response({"id": request_id, "aborted": True})


async def abort_request(request: web.Request) -> web.StreamResponse:
    """POST /abort_request with ``request_id`` or ``rid``, or ``abort_all``."""
    state = request.app[STATE]
    body = decode_object(await read_body(request, state.config.http.max_body_bytes))
    if body.get("abort_all") is True:
        ids = list(state.live)
    else:
        request_id = body.get("rid") if body.get("request_id") is None else body["request_id"]
        if not isinstance(request_id, str):
            raise invalid("request_id", "or rid must be given as a string", "missing_required_parameter")
        ids = [request_id]
    return web.json_response({"aborted": [request_id for request_id in ids if _abort(state, request_id)]})


async def not_this_model(request: web.Request) -> web.StreamResponse:
    raise ApiError(
        "not_supported_by_model", "the model generates text; it has no embeddings, ranking or audio"
    )
