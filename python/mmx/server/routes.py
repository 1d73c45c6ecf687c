"""The table of endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from mmx.server import routes_info as info
from mmx.server.routes_chat import chat_completions
from mmx.server.routes_completions import completions
from mmx.server.routes_messages import count_tokens, messages
from mmx.server.routes_profile import start_profile, stop_profile
from mmx.server.routes_responses import cancel, delete, responses, retrieve
from mmx.server.routes_text import detokenize, tokenize


class Route(NamedTuple):
    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    needs_key: bool
    admin: bool = False


ROUTES = (
    Route("POST", "/v1/chat/completions", chat_completions, True),
    Route("POST", "/v1/completions", completions, True),
    Route("POST", "/v1/messages", messages, True),
    Route("POST", "/v1/messages/count_tokens", count_tokens, True),
    Route("POST", "/v1/responses", responses, True),
    Route("GET", "/v1/responses/{id}", retrieve, True),
    Route("DELETE", "/v1/responses/{id}", delete, True),
    Route("POST", "/v1/responses/{id}/cancel", cancel, True),
    Route("POST", "/tokenize", tokenize, True),
    Route("POST", "/detokenize", detokenize, True),
    Route("POST", "/v1/tokenize", tokenize, True),
    Route("POST", "/v1/detokenize", detokenize, True),
    Route("GET", "/v1/models", info.models, True),
    Route("GET", "/v1/models/{id:.+}", info.model, True),
    Route("GET", "/health", info.health, False),
    Route("GET", "/live", info.live, False),
    Route("GET", "/ready", info.ready, False),
    Route("GET", "/ping", info.health, False),
    Route("POST", "/ping", info.health, False),
    Route("GET", "/health_generate", info.health_generate, True),
    Route("GET", "/version", info.version, False),
    Route("GET", "/load", info.load, False),
    Route("GET", "/server_info", info.server_info, True, admin=True),
    Route("GET", "/metrics", info.metrics, False),
    Route("GET", "/prometheus/metrics", info.metrics, False),
    Route("GET", "/openapi.json", info.openapi, False),
    Route("DELETE", "/v1/requests/{id}", info.abort_by_path, True),
    Route("POST", "/abort_request", info.abort_request, True),
    Route("POST", "/reset_prefix_cache", info.reset_prefix_cache, True, admin=True),
    Route("POST", "/start_profile", start_profile, True, admin=True),
    Route("POST", "/stop_profile", stop_profile, True, admin=True),
    Route("POST", "/flush_cache", info.reset_prefix_cache, True, admin=True),
    Route("POST", "/v1/embeddings", info.not_this_model, True),
    Route("POST", "/v1/rerank", info.not_this_model, True),
    Route("POST", "/v1/audio/{id}", info.not_this_model, True),
)
