"""One request over HTTP, timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from mmx.bench.dataset import Sample
from mmx.bench.events import Answer, AnswerReader
from mmx.bench.options import Options, sampling_fields

Clock = Callable[[], float]
ERROR_TEXT_LIMIT = 500


class Client:
    """Sends samples to one endpoint. ``clock``: monotonic seconds."""

    def __init__(
        self, http: aiohttp.ClientSession, options: Options, model: str, clock: Clock = time.perf_counter
    ) -> None:
        self._http = http
        self._options = options
        self._model = model
        self._url = options.url + options.path
        self.clock = clock

    def body(self, sample: Sample) -> dict[str, Any]:
        """The JSON that is sent for a sample; ``--extra-body`` wins over flags."""
        options = self._options
        if sample.body is not None:
            return {**sample.body, "model": self._model, **self._stream_fields(), **options.extra_body}
        body: dict[str, Any] = {"model": self._model, **sampling_fields(options)}
        if options.is_chat:
            body["messages"] = sample.messages or [{"role": "user", "content": sample.prompt}]
            limit = "max_tokens" if options.backend == "anthropic" else "max_completion_tokens"
            body[limit] = sample.output_len
            if options.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": options.logprobs}
        else:
            body["prompt"] = sample.prompt
            body["max_tokens"] = sample.output_len
            if options.logprobs is not None:
                body["logprobs"] = options.logprobs
        if sample.tools is not None:
            body["tools"] = sample.tools
        if options.ignore_eos:
            body["ignore_eos"] = True
        return {**body, **self._stream_fields(), **options.extra_body}

    def _stream_fields(self) -> dict[str, Any]:
        if not self._options.stream:
            return {"stream": False}
        if self._options.backend == "anthropic":
            return {"stream": True}
        usage = {"include_usage": True}
        # Why not always: it tells the tokens of each event, but other servers refuse the unknown field.
        if self._options.backend.startswith("vllm"):
            usage["continuous_usage_stats"] = True
        return {"stream": True, "stream_options": usage}

    async def send(self, sample: Sample, request_id: str, arrival: float | None = None) -> Answer:
        """Send and read to the end. Every failure is in the answer's ``error``.

        ``arrival``: when the request was due, by the clock; waiting since then is queue time.
        """
        data = msgspec.json.encode(self.body(sample))
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        start = self.clock()
        answer = Answer(arrival=start if arrival is None else arrival, start=start)
        try:
            async with self._http.post(self._url, data=data, headers=headers) as response:
                if response.status != 200:
                    text = (await response.text(errors="replace"))[:ERROR_TEXT_LIMIT]
                    answer.error = f"status {response.status}: {text}"
                else:
                    await self._read(response, AnswerReader(answer))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, msgspec.MsgspecError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.end = self.clock()
        return answer

    async def _read(self, response: aiohttp.ClientResponse, reader: AnswerReader) -> None:
        if not self._options.stream:
            body = await response.read()
            reader.whole(self.clock(), body)
            return
        async for data in response.content.iter_any():
            reader.feed(self.clock(), data)
        reader.end()
