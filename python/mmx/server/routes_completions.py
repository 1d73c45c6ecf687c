"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mmx.server.answer import CompletionWriter
from mmx.server.constrain import completion_constraint
from mmx.server.generation import Generation
from mmx.server.logprobs import LogprobFormat
from mmx.server.prepare import Incoming, build_job, receive
from mmx.server.prompts import completion_prompts, in_pool
from mmx.server.schemas import REFUSED_IN_COMPLETIONS, CompletionRequest
from mmx.server.serve import (
    answer_head,
    answer_json,
    answer_stream,
    collect,
    final_usage,
    logprob_format,
    stream_tail,
)


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue each prompt; no chat template, no reading of thinking or calls."""
    incoming, parsed = await receive(request, CompletionRequest, REFUSED_IN_COMPLETIONS)
    state = incoming.state
    front = state.serving()[2]
    prompts = await completion_prompts(state, front, parsed)
    make = completion_constraint(front, parsed, state.serving()[1].vocab_size)
    constraint = await in_pool(state, make)
    job = build_job(request, incoming, parsed, prompts, "prompt", lambda: None, constraint)
    logprobs = logprob_format(incoming, parsed)
    n = job.params[0].n
    echo = [""] * (len(prompts) * n)
    if parsed.echo:
        decode = front.tokenizer.decode
        texts = [
            decode(p.token_ids, skip_special_tokens=False) if p.text is None else p.text for p in prompts
        ]
        echo = [text for text in texts for _ in range(n)]
    async with Generation(state, job) as generation:
        if parsed.stream:
            extra: dict[str, object] = {"mmx": {"warnings": incoming.warnings}} if incoming.warnings else {}
            writer = CompletionWriter(
                answer_head(incoming, "text_completion", "cmpl-"),
                len(generation.choices),
                echo=echo,
                logprobs=logprobs,
                keep_ids=bool(parsed.return_token_ids),
                tail=stream_tail(generation, parsed, extra),
                usage=final_usage(generation, parsed),
            )
            return await answer_stream(request, generation, writer)
        return await _whole(incoming, parsed, generation, logprobs, echo)


async def _whole(
    incoming: Incoming,
    parsed: CompletionRequest,
    generation: Generation,
    logprobs: LogprobFormat | None,
    echo: list[str],
) -> web.StreamResponse:
    collected = await collect(generation)
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
    head = answer_head(incoming, "text_completion", "cmpl-")
    return answer_json(generation, {**head, "choices": choices, "mmx": extension})
