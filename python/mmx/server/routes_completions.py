"""POST /v1/completions."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from mmx.server.answer import Collected, CompletionWriter
from mmx.server.choice import Choice, Delta
from mmx.server.constrain import completion_constraint
from mmx.server.generation import Generation
from mmx.server.logprobs import LogprobFormat
from mmx.server.prepare import Incoming, build_job, new_id, receive
from mmx.server.prompts import completion_prompts, in_pool
from mmx.server.schemas import REFUSED_IN_COMPLETIONS, CompletionRequest
from mmx.server.serve import answer_json, answer_stream, final_usage, stream_tail


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue each prompt; no chat template, no reading of thinking or calls."""
    incoming, parsed = await receive(request, CompletionRequest, REFUSED_IN_COMPLETIONS)
    state = incoming.state
    front = state.serving()[2]
    prompts = await completion_prompts(state, front, parsed)
    make = completion_constraint(front, parsed, state.serving()[1].vocab_size)
    constraint = await in_pool(state, make)
    job = build_job(request, incoming, parsed, prompts, "prompt", lambda: None, constraint)
    logprobs = None
    if parsed.logprobs is not None:
        as_ids = parsed.return_tokens_as_token_ids or state.config.answer.tokens_as_ids
        logprobs = LogprobFormat(front.tokenizer, as_ids)
    n = job.params[0].n
    echo = [""] * (len(prompts) * n)
    if parsed.echo:
        texts = [p.text if p.text is not None else front.tokenizer.decode(p.token_ids) for p in prompts]
        echo = [text for text in texts for _ in range(n)]
    async with Generation(state, job) as generation:
        if parsed.stream:
            extra: dict[str, object] = {"mmx": {"warnings": incoming.warnings}} if incoming.warnings else {}
            writer = CompletionWriter(
                _head(incoming),
                len(generation.choices),
                echo=echo,
                logprobs=logprobs,
                keep_ids=bool(parsed.return_token_ids),
                tail=stream_tail(generation, parsed, extra),
                usage=final_usage(generation, parsed),
            )
            return await answer_stream(request, generation, writer)
        return await _whole(incoming, parsed, generation, logprobs, echo)


def _head(incoming: Incoming) -> dict[str, object]:
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": incoming.model,
        "system_fingerprint": incoming.state.fingerprint,
    }


async def _whole(
    incoming: Incoming,
    parsed: CompletionRequest,
    generation: Generation,
    logprobs: LogprobFormat | None,
    echo: list[str],
) -> web.StreamResponse:
    collected = [Collected() for _ in generation.choices]

    async def collect(choice: Choice, deltas: list[Delta]) -> None:
        for delta in deltas:
            collected[choice.index].add(delta)

    await generation.run(collect)
    choices: list[dict[str, Any]] = []
    prompts = [prompt for prompt in generation.job.prompts for _ in range(generation.job.params[0].n)]
    plain = LogprobFormat(incoming.state.serving()[2].tokenizer, False)
    for choice, parts, prefix, ids in zip(generation.choices, collected, echo, prompts, strict=True):
        infos = choice.prompt_logprobs or []
        shown = None
        if logprobs is not None:
            before = {}
            if parsed.echo:
                before = logprobs.echoed(choice.index, ids, infos, parsed.logprobs or 0)
            after = logprobs.completion(choice.index, parts.entries)
            shown = {name: [*before.get(name, ()), *values] for name, values in after.items()}
        choices.append(
            {
                "index": choice.index,
                "text": prefix + "".join(parts.content),
                "logprobs": shown,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "prompt_logprobs": None if parsed.prompt_logprobs is None else plain.prompt(ids, infos),
                "token_ids": parts.token_ids if parsed.return_token_ids else None,
            }
        )
    extension = incoming.extension(generation.job.params[0], None)
    return answer_json(generation, {**_head(incoming), "choices": choices, "mmx": extension})
