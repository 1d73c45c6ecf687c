"""/openapi.json, generated from the types that decode requests."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

import mmx
from mmx.server.messages_request import MessagesRequest
from mmx.server.responses_request import ResponsesRequest
from mmx.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_ANSWERS = {
    "200": {"description": "the answer"},
    "400": {"description": "the request names a wrong value"},
    "401": {"description": "no or wrong API key"},
    "404": {"description": "no such model or path"},
    "413": {"description": "the body is too large"},
    "415": {"description": "the body is not JSON"},
    "429": {"description": "the queue is full"},
    "503": {"description": "loading, draining or dead"},
}


@cache
def openapi_document() -> dict[str, Any]:
    """The OpenAPI 3.1 description of all endpoints."""
    from mmx.server.routes import ROUTES

    schemas, components = msgspec.json.schema_components(
        list(_BODIES.values()), ref_template="#/components/schemas/{name}"
    )
    bodies = dict(zip(_BODIES, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        # A route may say which characters a parameter takes; a path of the document only names it.
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        operation: dict[str, Any] = {"responses": _ANSWERS, "operationId": f"{route.method} {route.path}"}
        schema = bodies.get(route.path.removeprefix("/v1")) or bodies.get(route.path)
        if schema is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if "{id}" in path:
            operation["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "mmx", "version": mmx.__version__},
        "paths": paths,
        "components": {"schemas": components},
    }
