"""Runs the sequences of one HTTP request through the engine."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mmx.config import SamplingParams
from mmx.protocol import Constraint, Failed, Submit
from mmx.server.choice import Choice, Delta
from mmx.server.errors import ApiError, invalid
from mmx.server.model_front import ModelFront
from mmx.server.output import MakeReader
from mmx.server.state import Engine, ServerState

log = logging.getLogger("mmx.server")

CANARY_SECONDS = 120.0

Emit = Callable[[Choice, list[Delta]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A validated request: what the engine is asked for; one ``params`` per prompt."""

    request_id: str
    prompts: list[list[int]]
    params: list[SamplingParams]
    asked_max_tokens: int | None
    deadline_s: float | None
    cache_salt: str
    skip_special_tokens: bool
    keep_token_ids: bool
    interval: int
    make_reader: MakeReader
    constraint: Constraint | None = None


class Generation:
    """The choices of a job: ``prompt i``, sample ``j`` is choice ``i * n + j``.

    Use as an async context manager; leaving it by any way frees what the engine still holds.
    """

    def __init__(self, state: ServerState, job: Job) -> None:
        self.state = state
        self.job = job
        self.arrival = time.monotonic()
        self.engine, _, front = state.serving()
        self.choices: list[Choice] = []
        self._prompts: list[list[int]] = []
        for prompt, params in zip(job.prompts, job.params, strict=True):
            for sample in range(params.n):
                reader = job.make_reader()
                choice = Choice(
                    len(self.choices),
                    f"{job.request_id}-{len(self.choices)}",
                    params.of_sequence(sample),
                    front.detokenizer(
                        skip_special_tokens=job.skip_special_tokens, for_reader=reader is not None
                    ),
                    reader,
                    job.interval,
                    state.metrics,
                )
                if job.keep_token_ids:
                    choice.keep_token_ids()
                if job.asked_max_tokens == 0:
                    choice.hide_tokens()
                self.choices.append(choice)
                self._prompts.append(prompt)

    async def __aenter__(self) -> Generation:
        state, job = self.state, self.job
        if job.request_id in state.live:
            raise invalid("request_id", "is in use by a request that is still open", "duplicate_request_id")
        state.admit(len(self.choices))
        state.live[job.request_id] = [choice.request_id for choice in self.choices]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.engine.abort([choice.request_id for choice in self.choices if choice.finish_reason is None])
        self.state.live.pop(self.job.request_id, None)
        self._record()
        if not self.state.config.log.disable_requests:
            self._log()

    async def run(self, emit: Emit) -> None:
        """Generate to the end; every delta goes to ``emit``. ApiError if the engine fails a sequence."""
        drives = [self._drive(c, prompt, emit) for c, prompt in zip(self.choices, self._prompts, strict=True)]
        if len(drives) == 1:
            await drives[0]
            return
        tasks = [asyncio.ensure_future(drive) for drive in drives]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, choice: Choice, prompt: list[int], emit: Emit) -> None:
        stream = self.engine.submit(
            Submit(
                request_id=choice.request_id,
                prompt_token_ids=prompt,
                params=choice.params,
                deadline_s=self.job.deadline_s,
                cache_salt=self.job.cache_salt,
                constraint=self.job.constraint,
            )
        )
        while choice.finish_reason is None:
            deltas: list[Delta] = []
            for item in await stream.take():
                if isinstance(item, Failed):
                    raise _failure(item, self.state)
                deltas += choice.feed(item)
                if choice.finish_reason is not None:
                    break
            if choice.stopped_by_text:
                self.engine.abort([choice.request_id])
            if deltas:
                await emit(choice, deltas)

    def _record(self) -> None:
        """Count the finished request."""
        metrics, now = self.state.metrics, time.monotonic()
        firsts = [c.first_token_time for c in self.choices if c.first_token_time is not None]
        metrics.params_n.observe(self.job.params[0].n)
        if self.job.asked_max_tokens is not None:
            metrics.params_max_tokens.observe(self.job.asked_max_tokens)
        for prompt in self.job.prompts:
            metrics.request_prompt.observe(len(prompt))
        cached = sum(c.num_cached_tokens for c in self.choices)
        total = sum(map(len, self._prompts))
        metrics.prompt_tokens.add(total)
        metrics.prompt_tokens_cached.add(cached)
        metrics.prompt_by_source.value("cache").add(cached)
        metrics.prompt_by_source.value("compute").add(total - cached)
        for choice in self.choices:
            metrics.generation_tokens.add(choice.num_tokens)
            metrics.reasoning_tokens.add(choice.reasoning_tokens)
            metrics.request_generation.observe(choice.num_tokens)
            metrics.success.value(choice.finish_reason or "abort").add()
            for call in choice.reader.calls if choice.reader is not None else ():
                metrics.tool_calls.value("ok" if call.complete else "truncated").add()
            if choice.first_token_time is not None and choice.num_tokens > 1:
                spent = choice.last_token_time - choice.first_token_time
                metrics.tpot.observe(spent / (choice.num_tokens - 1))
                metrics.decode.observe(spent)
        metrics.request_max_generation.observe(max(c.num_tokens for c in self.choices))
        if firsts:
            metrics.ttft.observe(min(firsts) - self.arrival)
            metrics.e2e.observe(now - self.arrival)

    def _log(self) -> None:
        """One line a request: lengths and times, no text."""
        times = self.timings()
        reasons = [choice.finish_reason or "cut" for choice in self.choices]
        log.info(
            "%s: %d prompt tokens (%d cached), %d generated, first after %.0f ms, %.1f tokens/s, %s",
            *(self.job.request_id, sum(map(len, self.job.prompts)), times["cached_tokens"]),
            *(sum(c.num_tokens for c in self.choices), times["ttft_ms"], times["tokens_per_second"]),
            " ".join(dict.fromkeys(reasons)),
        )

    # ---- facts for the answer ------------------------------------------------------------------------

    def usage(self, *, details: bool) -> dict[str, object]:
        """Token counts of the whole request; each prompt counts once however many samples it has."""
        prompt = sum(map(len, self.job.prompts))
        completion = sum(c.num_tokens for c in self.choices)
        usage: dict[str, object] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        if details:
            cached, at = 0, 0
            for params in self.job.params:
                cached += self.choices[at].num_cached_tokens
                at += params.n
            usage["prompt_tokens_details"] = {"cached_tokens": cached, "multimodal_tokens": 0}
        usage["completion_tokens_details"] = {
            "reasoning_tokens": sum(c.reasoning_tokens for c in self.choices),
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
        return usage

    def timings(self) -> dict[str, float | int]:
        """Milliseconds of the request as the server saw them."""
        firsts = [c.first_token_time for c in self.choices if c.first_token_time is not None]
        last = max((c.last_token_time for c in self.choices), default=self.arrival)
        tokens = sum(c.num_tokens for c in self.choices)
        first = min(firsts, default=self.arrival)
        decode = max(last - first, 0.0)
        longest = max(c.num_tokens for c in self.choices)
        return {
            "ttft_ms": round(1000 * (first - self.arrival), 3),
            "decode_ms": round(1000 * decode, 3),
            "mean_itl_ms": round(1000 * decode / (longest - 1), 3) if longest > 1 else 0.0,
            "tokens_per_second": round(tokens / max(last - self.arrival, 1e-9), 2),
            "cached_tokens": sum(c.num_cached_tokens for c in self.choices),
        }


def _failure(failed: Failed, state: ServerState) -> ApiError:
    if failed.code == "queue_full":
        state.metrics.rejections.value("queue_full").add()
        overload = state.config.http.overload_status
        return ApiError(failed.code, failed.message, status=overload, retry_after=state.retry_after())
    if failed.status >= 500 and failed.code not in ("deadline_exceeded", "numerical_error"):
        return ApiError(failed.code, failed.message, status=failed.status)
    return ApiError(failed.code, failed.message, failed.param, status=failed.status)


async def canary(engine: Engine, front: ModelFront) -> None:
    """Generate two tokens; raises RuntimeError unless the engine can."""
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    prompt = front.tokenizer.encode("Hello") or [0]
    # Several may look after the engine at once.
    request_id = f"canary-{uuid.uuid4().hex}"
    submit = Submit(request_id=request_id, prompt_token_ids=prompt, params=params, priority=-1)
    stream = engine.submit(submit)
    finish: str | None = None
    try:
        while finish is None:
            items = await asyncio.wait_for(stream.take(), CANARY_SECONDS)
            for item in items:
                if isinstance(item, Failed):
                    raise RuntimeError(f"the first generation failed: {item.message}")
                finish = item.finish_reason
    finally:
        engine.abort([request_id])
