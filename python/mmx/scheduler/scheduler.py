"""Continuous batching with chunked prefill, prefix reuse and preemption by recompute.

One step is ``schedule`` (plan), the runner, ``commit`` (results). A second step may be planned before the
first is committed: the token that the first samples is then ``PENDING``. Whether a request ends by its length
is known without it; one that ends otherwise is computed once too often, and that result is dropped. Its pages
may be given away at once, because steps run in the order of their planning.
Everything is kept in insertion order, so that schedulers fed the same events emit the same batches.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from heapq import heappop, heappush
from operator import attrgetter

from mmx.batch import PENDING, SampledToken, ScheduledBatch, ScheduledSeq
from mmx.config import EngineConfig
from mmx.protocol import EngineStats, Failed, FinishReason, Submit, TokenOut, duplicate
from mmx.scheduler.admission import Limits, refusal
from mmx.scheduler.block_manager import BlockManager
from mmx.scheduler.prefix_cache import page_hash, root_hash
from mmx.scheduler.request import Request

_order = attrgetter("order")

# Prompt tokens of a sequence in one step whose logits are kept; each takes the size of the vocabulary.
MAX_EXPLAINED = 256
# Waiting requests among which short ones are looked for behind long ones.
MAX_LOOKAHEAD = 256


class Scheduler:
    """Decides what each step computes. Times are seconds of any one monotonic clock."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        self.limits = Limits(max_model_len, num_blocks * block_size, vocab_size)
        self.blocks = BlockManager(num_blocks, block_size)
        self.block_size = block_size
        self.max_num_seqs = config.max_num_seqs
        self.max_num_batched_tokens = config.max_num_batched_tokens
        self.max_num_queued_reqs = queue_limit(config)
        self._eos_token_ids = tuple(eos_token_ids)
        self._caching = config.enable_prefix_caching
        self._seed = config.seed

        self._requests: dict[str, Request] = {}
        self._waiting: list[Request] = []  # both lists sorted by Request.order
        self._running: list[Request] = []
        self._deadlines: list[tuple[float, int, str]] = []  # heap; entries of ended requests are skipped
        self._in_flight: deque[tuple[ScheduledBatch, list[Request]]] = deque()  # planned, not committed
        self._num_arrivals = 0
        self._num_steps = 0
        self._num_waiting_tokens = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._num_cache_queries = 0
        self._num_cache_hits = 0
        self._num_preemptions = 0

    # ---- events ----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def holds(self, request_id: str) -> bool:
        """Whether the request lives here."""
        return request_id in self._requests

    def num_cached_tokens(self, message: Submit) -> int:
        """Tokens of the prompt that the prefix cache would spare."""
        keys = [root_hash(message.cache_salt)] if self._caching else []
        return self.block_size * len(self._find_prefix(message.prompt_token_ids, keys))

    @property
    def needs_results(self) -> bool:
        """Whether the next step can not be planned before the one in flight is committed: penalties and token
        masks read all tokens."""
        return any((req.needs_history or req.masked) and req.num_pending for req in self._running)

    def submit(self, message: Submit, now: float) -> Failed | None:
        """Queue a request, or say why not."""
        request_id = message.request_id
        if request_id in self._requests:
            return duplicate(request_id)
        if (failed := refusal(message, self.limits)) is not None:
            return failed
        room = self.max_num_queued_reqs + max(0, self.max_num_seqs - len(self._running))
        if len(self._waiting) >= room and message.priority >= 0:
            text = f"the queue is full ({len(self._waiting)} requests are waiting); try again later"
            return Failed(request_id, text, "queue_full", 429)

        params, prompt = message.params, message.prompt_token_ids
        eos_ids = () if params.ignore_eos else self._eos_token_ids
        stop_ids = frozenset((*eos_ids, *params.stop_token_ids))
        longest = self.limits.max_total_tokens
        if params.max_tokens is not None:
            longest = min(longest, len(prompt) + params.max_tokens)
        req = Request(
            request_id=request_id,
            tokens=list(prompt),
            num_prompt_tokens=len(prompt),
            params=params,
            priority=message.priority,
            arrival=self._num_arrivals,
            seed=self._draw_seed() if params.seed is None else params.seed,
            max_total_tokens=longest,
            stop_ids=stop_ids,
            banned_ids=sorted(stop_ids) if params.min_tokens else [],
            deadline=None if message.deadline_s is None else now + message.deadline_s,
            page_keys=[root_hash(message.cache_salt)] if self._caching else [],
            masked=message.constraint is not None,
        )
        self._num_arrivals += 1
        self._requests[request_id] = req
        self._enqueue(req)
        if req.deadline is not None:
            heappush(self._deadlines, (req.deadline, req.arrival, request_id))
        return None

    def abort(self, request_ids: Iterable[str]) -> None:
        """End these requests and free their pages; unknown ids are ignored."""
        for request_id in request_ids:
            if (req := self._requests.get(request_id)) is not None:
                self._end(req)

    def abort_all(self) -> None:
        """End every request; steps in flight will not be committed."""
        self.abort(list(self._requests))
        self._in_flight.clear()

    def expire(self, now: float) -> list[Failed]:
        """End the requests whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival, request_id = heappop(self._deadlines)
            req = self._requests.get(request_id)
            if req is not None and req.arrival == arrival:
                self._end(req)
                text = "the deadline of the request passed before it was finished"
                expired.append(Failed(request_id, text, "deadline_exceeded", 504, "timeout"))
        return expired

    def reset_prefix_cache(self) -> None:
        """Forget all cached pages that no running request uses."""
        self.blocks.reset_cache()

    # ---- one step --------------------------------------------------------------------------------

    def schedule(self) -> ScheduledBatch | None:
        """Plan the next step; None when there is nothing to do.

        Decodes go first, then chunks of running prompts, then new requests, each in order of priority
        and arrival, until ``max_num_batched_tokens`` are planned. A prompt that needs more steps than this
        one leaves up to half of it to prompts that fit into that half whole, running or new. At most one step
        may be in flight.
        """
        budget = self.max_num_batched_tokens
        decodes: list[tuple[ScheduledSeq, Request]] = []
        chunks: list[tuple[ScheduledSeq, Request]] = []

        def plan(req: Request, num_tokens: int) -> None:
            nonlocal budget
            (decodes if req.num_unplanned == 1 else chunks).append((self._plan(req, num_tokens), req))
            budget -= num_tokens

        i = 0
        while i < len(self._running) and budget > 0:
            req = self._running[i]
            if req.num_unplanned == 1 and self._grow(req):
                plan(req, 1)
            i += 1
        prompts = [req for req in self._running if req.num_unplanned > 1]
        if any(req.num_unplanned > self.max_num_batched_tokens for req in prompts):
            for req in self._short_prompts(prompts, budget // 2):
                plan(req, req.num_unplanned)
        for req in prompts:
            if req.num_unplanned > 1 and budget > 0:
                plan(req, _chunk(req, budget))
        while self._waiting and budget > 0 and len(self._running) < self.max_num_seqs:
            req = self._waiting[0]
            if not self._admit(req):
                break
            plan(req, _chunk(req, budget))

        if not decodes and not chunks:
            return None
        self._num_steps += 1
        planned = decodes + chunks
        batch = ScheduledBatch(step=self._num_steps, seqs=[seq for seq, _ in planned])
        self._in_flight.append((batch, [req for _, req in planned]))
        return batch

    def commit(self, batch: ScheduledBatch, sampled: Sequence[SampledToken]) -> list[TokenOut | Failed]:
        """Take over the results of the oldest step in flight: one sampled token per sampling sequence, in
        batch order. Those of requests that have ended meanwhile are dropped."""
        sampling = [seq.request_id for seq in batch.seqs if seq.samples]
        if [token.request_id for token in sampled] != sampling:
            raise ValueError(f"sampled must hold one token for each of {len(sampling)} sampling sequences")
        outputs: list[TokenOut | Failed] = []
        results = iter(sampled)
        for seq, req in zip(batch.seqs, self._land(batch), strict=True):
            token = next(results) if seq.samples else None
            if self._requests.get(seq.request_id) is not req:
                continue
            if token is not None and token.error is not None:
                # Why: what made the logits bad may sit in the pages, and must not spread by a hit.
                self.blocks.forget([] if token.forbidden else req.block_ids)
                fault = ("invalid_grammar", 400) if token.forbidden else ("numerical_error", 500)
                outputs.append(self._fail(req, token.error, *fault))
                continue
            if self._caching and req.block_ids:  # none: preempted meanwhile
                self._remember_pages(req, seq.start + len(seq.token_ids))
            if token is not None:
                outputs.append(self._accept(req, token))
        return outputs

    def fail(self, batch: ScheduledBatch, message: str, code: str, status: int) -> list[Failed]:
        """End every request of the oldest step in flight, which could not be computed."""
        return [
            self._fail(req, message, code, status)
            for req in self._land(batch)
            if self._requests.get(req.request_id) is req
        ]

    def fail_chunks(
        self, batch: ScheduledBatch, message: str, code: str, status: int
    ) -> tuple[ScheduledBatch, list[Failed]]:
        """End the requests whose prompts are a part of the newest step in flight, which could not be
        computed; returns the decodes of that step, which take its place."""
        newest, reqs = self._in_flight.pop()
        if newest is not batch:
            raise ValueError(f"step {batch.step} is not the newest in flight")
        failures, kept = [], []
        for seq, req in zip(batch.seqs, reqs, strict=True):
            if len(seq.token_ids) == 1 and seq.samples:
                kept.append((seq, req))
                continue
            req.num_in_flight -= 1
            req.num_pending -= seq.samples
            if self._requests.get(req.request_id) is req:
                failures.append(self._fail(req, message, code, status))
        rest = ScheduledBatch(step=batch.step, seqs=[seq for seq, _ in kept])
        self._in_flight.append((rest, [req for _, req in kept]))
        return rest, failures

    # ---- facts -----------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_tokens=self._num_waiting_tokens,
            num_blocks=self.blocks.num_blocks,
            num_free_blocks=self.blocks.num_available,
            num_cached_blocks=self.blocks.num_reusable,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=self._num_output_tokens,
            prefix_cache_queries=self._num_cache_queries,
            prefix_cache_hits=self._num_cache_hits,
            num_preemptions=self._num_preemptions,
            num_steps=self._num_steps,
        )

    # ---- parts -----------------------------------------------------------------------------------

    def _draw_seed(self) -> int:
        """A seed for a request without one, from the engine's seed and the order of arrival."""
        text = f"{self._seed}/{self._num_arrivals}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)

    def _enqueue(self, req: Request) -> None:
        insort(self._waiting, req, key=_order)
        self._num_waiting_tokens += len(req.tokens)

    def _remove(self, queue: list[Request], req: Request) -> bool:
        i = bisect_left(queue, req.order, key=_order)
        if i < len(queue) and queue[i] is req:
            del queue[i]
            return True
        return False

    def _land(self, batch: ScheduledBatch) -> list[Request]:
        """The requests of the oldest step in flight, which must be ``batch``, and no longer is."""
        if not self._in_flight or self._in_flight[0][0] is not batch:
            raise ValueError(f"step {batch.step} is not the oldest in flight")
        _, reqs = self._in_flight.popleft()
        for seq, req in zip(batch.seqs, reqs, strict=True):
            req.num_in_flight -= 1
            req.num_pending -= seq.samples
        return reqs

    def _fail(self, req: Request, message: str, code: str, status: int) -> Failed:
        self._end(req)
        text = f"request {req.request_id[:64]}: {message}"
        return Failed(req.request_id, text, code, status)

    def _end(self, req: Request) -> None:
        """Forget a request, wherever it is."""
        del self._requests[req.request_id]
        if not self._remove(self._running, req):
            self._remove(self._waiting, req)
            self._num_waiting_tokens -= len(req.tokens)
        self._free_pages(req)

    def _free_pages(self, req: Request) -> None:
        self.blocks.release(req.block_ids)
        req.block_ids = []

    def _plan(self, req: Request, num_tokens: int) -> ScheduledSeq:
        start, end = req.num_planned, req.num_planned + num_tokens
        num_known, num_outputs = len(req.tokens), req.num_output_tokens + req.num_pending
        samples = end == num_known + req.num_pending
        targets = req.tokens[start + 1 : end + 1] if req.explains_prompt else []
        req.num_planned = end
        req.num_in_flight += 1
        req.num_pending += samples
        return ScheduledSeq(
            request_id=req.request_id,
            token_ids=req.tokens[start:end] if end <= num_known else [PENDING],
            start=start,
            block_ids=req.block_ids[: self.blocks.num_blocks_for(end)],
            samples=samples,
            params=req.params,
            seed=req.seed,
            num_output_tokens=num_outputs,
            num_prompt_tokens=req.num_prompt_tokens,
            history=list(req.tokens) if req.needs_history else None,
            banned_token_ids=req.banned_ids if num_outputs < req.params.min_tokens else [],
            masked=req.masked,
            prompt_targets=targets,
        )

    def _short_prompts(self, prompts: Iterable[Request], budget: int) -> Iterator[Request]:
        """Prompts of which ``budget`` holds all that is left, started if they are new. Each must be planned
        before the next one is asked for."""
        for req in prompts:
            if req.num_unplanned <= _chunk(req, budget):
                budget -= req.num_unplanned
                yield req
        for req in self._waiting[:MAX_LOOKAHEAD]:
            if budget <= 0 or len(self._running) >= self.max_num_seqs:
                return
            if len(req.tokens) <= _chunk(req, budget):
                if not self._admit(req):
                    return
                budget -= req.num_unplanned
                yield req

    def _grow(self, req: Request) -> bool:
        """Give a decoding request the page of its next position; false if it was itself preempted.

        The victim is the last in order, which this step has not planned yet.
        """
        if req.num_planned < len(req.block_ids) * self.block_size:
            return True
        while self.blocks.num_available == 0:
            victim = self._running.pop()
            self._preempt(victim)
            if victim is req:
                return False
        req.block_ids += self.blocks.allocate(1)
        return True

    def _preempt(self, req: Request) -> None:
        self._free_pages(req)
        req.num_planned = 0
        self._num_preemptions += 1
        self._enqueue(req)

    def _admit(self, req: Request) -> bool:
        """Start a waiting request if all pages of its known tokens are available and nothing of it
        is in flight.

        Why all at once: prompts that grow chunk by chunk could fill the pool with none complete.
        Why the reserve: a request that starts on the last page is preempted as soon as another decodes
        past a page border.
        """
        if req.num_in_flight:
            return False
        hits = [] if req.explains_prompt else self._find_prefix(req.tokens, req.page_keys)
        num_new = self.blocks.num_blocks_for(len(req.tokens)) - len(hits)
        reserve = -(-len(self._running) // 8)
        if num_new + self.blocks.num_unused(hits) + reserve > self.blocks.num_available:
            return False
        self.blocks.share(hits)
        req.block_ids = hits + self.blocks.allocate(num_new)
        req.num_planned = len(hits) * self.block_size
        req.num_keyed_pages = len(hits)
        if req.num_cached_tokens is None:
            req.num_cached_tokens = req.num_planned
            if self._caching:
                self._num_cache_queries += req.num_prompt_tokens
                self._num_cache_hits += req.num_planned
        self._remove(self._waiting, req)
        self._num_waiting_tokens -= len(req.tokens)
        insort(self._running, req, key=_order)
        return True

    def _find_prefix(self, tokens: list[int], keys: list[bytes]) -> list[int]:
        """Pages of the longest cached prefix that leaves at least the last token to compute; none without
        ``keys``, which are those of the first pages and get more."""
        hits: list[int] = []
        for i in range((len(tokens) - 1) // self.block_size if keys else 0):
            page = self.blocks.cache.get(self._page_key(tokens, keys, i))
            if page is None:
                break
            hits.append(page)
        return hits

    def _page_key(self, tokens: list[int], keys: list[bytes], i: int) -> bytes:
        """Key of the i-th page, whose tokens are all known."""
        while len(keys) <= i + 1:
            start = (len(keys) - 1) * self.block_size
            keys.append(page_hash(keys[-1], tokens[start : start + self.block_size]))
        return keys[i + 1]

    def _remember_pages(self, req: Request, num_computed: int) -> None:
        """Put pages that are full of computed tokens into the prefix cache."""
        for i in range(req.num_keyed_pages, num_computed // self.block_size):
            self.blocks.cache.insert(self._page_key(req.tokens, req.page_keys, i), req.block_ids[i])
            req.num_keyed_pages = i + 1

    def _accept(self, req: Request, token: SampledToken) -> TokenOut:
        """Append a sampled token and end the request if it was the last one."""
        is_first = req.num_output_tokens == 0
        req.tokens.append(token.token_id)
        self._num_waiting_tokens += not req.block_ids  # preempted meanwhile
        self._num_output_tokens += 1
        if is_first:
            self._num_prompt_tokens += req.num_prompt_tokens
        finish: FinishReason | None = None
        stop_reason: int | None = None
        if token.token_id in req.stop_ids and req.num_output_tokens > req.params.min_tokens:
            finish, stop_reason = "stop", token.token_id
        elif len(req.tokens) >= req.max_total_tokens:
            finish = "length"
        if finish is not None:
            self._end(req)
        return TokenOut(
            request_id=req.request_id,
            token_ids=[token.token_id],
            logprobs=None if token.logprobs is None else [token.logprobs],
            finish_reason=finish,
            stop_reason=stop_reason,
            num_cached_tokens=req.num_cached_tokens if is_first else None,
            prompt_logprobs=token.prompt_logprobs,
        )


def _chunk(req: Request, budget: int) -> int:
    """Tokens of a prompt to compute in a step that has ``budget`` left."""
    limit = MAX_EXPLAINED if req.explains_prompt else budget
    return min(limit, budget, req.num_unplanned)


def queue_limit(config: EngineConfig) -> int:
    """Requests that may wait beyond the free running slots; by default four times the running ones."""
    given = config.max_num_queued_reqs
    return 4 * config.max_num_seqs if given is None else given
