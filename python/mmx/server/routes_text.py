"""POST /tokenize and /detokenize."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from mmx.server.decode import decode_request
from mmx.server.errors import ApiError
from mmx.server.prepare import read_object
from mmx.server.prompts import chat_prompt, check_ids, in_pool, render_options
from mmx.server.schemas import DetokenizeRequest, TokenizeRequest
from mmx.server.state import STATE
from mmx.server.thinking import choose


async def tokenize(request: web.Request) -> web.StreamResponse:
    """Ids of a text, or of a conversation as chat would render it."""
    state = request.app[STATE]
    _, ready, front = state.serving()
    body = await read_object(request)
    parsed, _ = decode_request(body, TokenizeRequest, {})
    state.answered_name(parsed.model)
    if parsed.messages is not None:
        thinking = choose(parsed, state.config.model.default_chat_template_kwargs, front.family)
        prompt = await chat_prompt(state, front, body, render_options(parsed, thinking.template_kwargs))
        ids = prompt.token_ids
    elif parsed.prompt is not None:
        add = parsed.add_special_tokens is not False
        ids = await in_pool(state, partial(front.tokenizer.encode, parsed.prompt, add_special_tokens=add))
    else:
        raise ApiError("missing_required_parameter", "prompt or messages is required", "prompt")
    texts = None
    if parsed.return_token_strs:
        texts = [front.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    return web.json_response(
        {"count": len(ids), "max_model_len": ready.max_model_len, "tokens": ids, "token_strs": texts}
    )


async def detokenize(request: web.Request) -> web.StreamResponse:
    """Text of ids, control tokens included."""
    state = request.app[STATE]
    _, ready, front = state.serving()
    body = await read_object(request)
    parsed, _ = decode_request(body, DetokenizeRequest, {})
    state.answered_name(parsed.model)
    if parsed.tokens:
        check_ids(parsed.tokens, ready.vocab_size, "tokens")
    text = await in_pool(state, partial(front.tokenizer.decode, parsed.tokens, skip_special_tokens=False))
    return web.json_response({"prompt": text})
