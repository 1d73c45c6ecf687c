"""Offline generation in the caller's process: ``mmx.LLM``."""

from __future__ import annotations

import atexit
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from tqdm import tqdm

from mmx.config import EngineConfig, ParallelConfig, SamplingParams
from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.model_path import model_path
from mmx.protocol import (
    Abort,
    EngineStats,
    Failed,
    FinishReason,
    ResetPrefixCache,
    StepOutput,
    Submit,
    TokenLogprobs,
    TokenOut,
)
from mmx.tokenizer import ChatTemplate, IncrementalDetokenizer, StopStrings, Tokenizer

NO_QUEUE_LIMIT = 2**31 - 1

Prompts = str | Sequence[str] | Sequence[Sequence[int]]
Conversation = Sequence[Mapping[str, Any]]


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One generated sequence. ``stop_reason`` is the stop string or stop token id that ended it."""

    index: int
    token_ids: list[int]
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None


class RequestOutput(msgspec.Struct, kw_only=True):
    """What came of one prompt: ``n`` sequences. ``prompt_logprobs``, if asked for, are those of every prompt
    token but the first. The properties are those of the first one."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return self.outputs[0].logprobs


class LLM:
    """A model and an engine in this process.

    ``model`` is a checkpoint folder, None the demo model of the package. With ``skip_tokenizer_init``
    prompts are token ids, ``text`` stays empty and ``stop`` strings are refused. ``parallel`` spreads the
    model over devices of this machine (``tensor_parallel_size`` alone is the short form). The ``options`` are
    fields of ``EngineConfig``, such as ``max_model_len``, ``kv_cache_dtype`` or ``seed``. Raises ConfigError,
    WeightsError or MemoryPlanError (``mmx.errors``) when the model can not be served as asked.

    Threads may share it, forked processes not: the threads of CPU kernels do not outlive a fork.
    """

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        skip_tokenizer_init: bool = False,
        tensor_parallel_size: int = 1,
        parallel: ParallelConfig | None = None,
        **options: Any,
    ) -> None:
        folder = model_path(model)
        given = dict(
            model=str(folder),
            device=device,
            dtype=dtype,
            max_num_queued_reqs=NO_QUEUE_LIMIT,
            parallel=parallel or {"tensor_parallel_size": tensor_parallel_size},
            **options,
        )
        self.config = msgspec.convert(given, EngineConfig)  # which looks at the types, too
        self.tokenizer: Tokenizer | None = None if skip_tokenizer_init else Tokenizer(folder)
        self._channel = LocalChannel()
        with tqdm(total=100, desc="Loading", unit="%", disable=None, leave=False) as bar:
            # Why here: mmx.llm is importable, for its types, without the seconds that torch takes.
            from mmx.engine.ranked import start_runner

            runner = start_runner(self.config, _show_progress(bar))
        self._close: Callable[[], None] | None = getattr(runner, "close", None)
        if self._close is not None:
            atexit.register(self._close)
        self._engine = Engine(self.config, runner, self._channel)
        self.max_model_len: int = runner.max_model_len
        self._chat_template: ChatTemplate | None = None
        self._num_requests = 0
        self._lock = threading.Lock()

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """One result per prompt, in the order of the prompts.

        ``sampling_params`` is one for all prompts or one per prompt; None means ``SamplingParams()``,
        which samples until an end token or the end of the context. A prompt that can not be served
        raises a ValueError that names it; a fault of the engine raises a RuntimeError.
        """
        texts, ids = self._tokenize(prompts)
        params = _one_per_prompt(sampling_params, len(ids))
        results: list[RequestOutput] = []
        sequences: dict[str, _Sequence] = {}
        for i, (text, prompt_ids, p) in enumerate(zip(texts, ids, params, strict=True)):
            if p.stop and self.tokenizer is None:
                raise ValueError(f"prompts[{i}]: stop strings need a tokenizer, use stop_token_ids instead")
            result = RequestOutput(
                request_id=str(self._num_requests), prompt=text, prompt_token_ids=prompt_ids, outputs=[]
            )
            self._num_requests += 1
            results.append(result)
            for index in range(p.n):
                sequences[f"{result.request_id}-{index}"] = _Sequence(i, result, index, p, self.tokenizer)
        with self._lock:
            try:
                self._run(sequences, num_prompts=len(ids), use_tqdm=use_tqdm)
            finally:
                # Why: after an error or Ctrl-C nothing of this call may be left in the engine.
                self._engine.abort_all()
                self._channel.inbox.clear()
                self._channel.outbox.clear()
        return results

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """``generate`` for one conversation or a list of them, rendered with the model's template."""
        if self.tokenizer is None:
            raise ValueError("messages need a tokenizer, but skip_tokenizer_init is set")
        if self._chat_template is None:
            self._chat_template = ChatTemplate.from_checkpoint(
                self.config.model,
                markers=self.tokenizer.control_ids,
                variables=self.tokenizer.special_token_texts,
            )
        prompts = []
        items: list[Any] = list(messages)
        for conversation in [items] if items and isinstance(items[0], Mapping) else items:
            rendered = self._chat_template.render(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                template_kwargs=chat_template_kwargs,
            )
            prompts.append(self.tokenizer.encode_rendered(rendered))
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def reset_prefix_cache(self) -> None:
        """Forget all cached pages."""
        with self._lock:
            self._channel.inbox.append(ResetPrefixCache())
            self._engine.step()
            self._channel.outbox.clear()

    def close(self) -> None:
        """End the processes of the other ranks, if there are any; nothing can be generated afterwards."""
        if self._close is not None:
            atexit.unregister(self._close)
            self._close()
            self._close = None

    def stats(self) -> EngineStats:
        """Gauges and counters of the engine."""
        return self._engine.scheduler.stats()

    def _tokenize(self, prompts: Prompts) -> tuple[list[str | None], list[list[int]]]:
        items = [prompts] if isinstance(prompts, str) else list(prompts)
        texts: list[str | None] = []
        ids: list[list[int]] = []
        for i, item in enumerate(items):
            if isinstance(item, str):
                if self.tokenizer is None:
                    raise ValueError(f"prompts[{i}]: must be token ids, because skip_tokenizer_init is set")
                texts.append(item)
                ids.append(self.tokenizer.encode(item, add_special_tokens=True))
            elif isinstance(item, list | tuple) and all(isinstance(token_id, int) for token_id in item):
                texts.append(None)
                ids.append(list(item))
            else:
                raise ValueError(
                    f"prompts[{i}]: must be a string or a list of ids, got {type(item).__name__}"
                )
        return texts, ids

    def _run(self, sequences: dict[str, _Sequence], num_prompts: int, use_tqdm: bool) -> None:
        for request_id, sequence in sequences.items():
            ids, params = sequence.result.prompt_token_ids, sequence.params
            self._channel.inbox.append(Submit(request_id=request_id, prompt_token_ids=ids, params=params))
        bar = tqdm(total=num_prompts, desc="Generating", unit="prompt", disable=None if use_tqdm else True)
        with bar:
            num_left = Counter(sequence.prompt_idx for sequence in sequences.values())
            while sequences:
                with _uninterrupted():
                    self._engine.step()
                for message in self._channel.outbox:
                    for ended in self._take(message, sequences):
                        num_left[ended.prompt_idx] -= 1
                        bar.update(num_left[ended.prompt_idx] == 0)
                self._channel.outbox.clear()

    def _take(self, message: object, sequences: dict[str, _Sequence]) -> list[_Sequence]:
        """Hand a message of the engine to its sequences; returns those that ended."""
        if isinstance(message, Failed):
            text = f"prompts[{sequences[message.request_id].prompt_idx}]: {message.message}"
            raise ValueError(text) if message.status < 500 else RuntimeError(text)
        if not isinstance(message, StepOutput):
            return []
        ended = []
        for out in message.outputs:
            sequence = sequences[out.request_id]
            sequence.add(out)
            if sequence.output.finish_reason is not None:
                ended.append(sequences.pop(out.request_id))
                if out.finish_reason is None:
                    self._channel.inbox.append(Abort(request_ids=[out.request_id]))
        return ended


class _Sequence:
    """Collects one sequence: its tokens, its text, and the stop strings in it."""

    def __init__(
        self,
        prompt_idx: int,
        result: RequestOutput,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.prompt_idx = prompt_idx
        self.result = result
        self.params = params.of_sequence(index)
        logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self.output = CompletionOutput(index=index, token_ids=[], logprobs=logprobs)
        result.outputs.append(self.output)
        self._detokenizer = None if tokenizer is None else IncrementalDetokenizer(tokenizer)
        self._stop = StopStrings(params.stop, include_stop_str=params.include_stop_str_in_output)

    def add(self, out: TokenOut) -> None:
        """Append what one step brought; sets ``output.finish_reason`` when the sequence is complete."""
        output = self.output
        output.token_ids += out.token_ids
        if output.logprobs is not None and out.logprobs is not None:
            output.logprobs += out.logprobs
        if out.prompt_logprobs is not None:
            self.result.prompt_logprobs = out.prompt_logprobs
        if out.num_cached_tokens is not None and output.index == 0:
            self.result.num_cached_tokens = out.num_cached_tokens
        output.finish_reason, output.stop_reason = out.finish_reason, out.stop_reason
        if self._detokenizer is None:
            return
        hides_stop_token = out.stop_reason is not None and not self.params.include_stop_str_in_output
        text = self._detokenizer.feed(out.token_ids[:-1] if hides_stop_token else out.token_ids)
        if out.finish_reason is not None:
            text += self._detokenizer.finish()
        if len(output.token_ids) <= self.params.min_tokens:
            output.text += text
            return
        output.text += self._stop.feed(text)
        if self._stop.matched is not None:
            output.finish_reason, output.stop_reason = "stop", self._stop.matched
        elif out.finish_reason is not None:
            output.text += self._stop.finish()


def _one_per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if not isinstance(params, Sequence) or not all(isinstance(p, SamplingParams) for p in params):
        raise ValueError("sampling_params must be SamplingParams or a list of them")
    if len(params) != num_prompts:
        raise ValueError(f"sampling_params must be one or {num_prompts} (one per prompt), got {len(params)}")
    return list(params)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C comes behind a step: in the middle of one it would leave the ranks in different steps."""
    held: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    # Why not a handler that is not Python's, None: it could not be put back.
    holds = before is not None and threading.current_thread() is threading.main_thread()
    if holds:
        signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        if holds:
            signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def _show_progress(bar: tqdm[Any]) -> Callable[[str, float], None]:
    def show(phase: str, fraction: float) -> None:
        bar.set_description(f"Loading: {phase}")
        bar.n = round(100 * fraction)
        bar.refresh()

    return show
