"""A fake model for scheduler tests: its next token is a hash of what the pages really hold."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from mmx.batch import PENDING, SampledToken, ScheduledBatch
from mmx.config import EngineConfig, SamplingParams
from mmx.protocol import Failed, Submit, TokenOut
from mmx.scheduler import Scheduler
from unit.consistency import check_scheduler

VOCAB = 50
EOS = 7


def next_token(history: Sequence[int], banned: Sequence[int] = ()) -> int:
    digest = blake2b(repr(list(history)).encode(), digest_size=8).digest()
    token_id = int.from_bytes(digest, "little") % VOCAB
    while token_id in banned:
        token_id = (token_id + 1) % VOCAB
    return token_id


class FakeRunner:
    """Keeps (token, position) in page slots and reads the whole history back through the block table."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.slots: list[list[tuple[int, int] | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.latest: dict[str, int] = {}  # tokens of the step before

    def execute(self, batch: ScheduledBatch) -> list[SampledToken]:
        written: set[tuple[int, int]] = set()
        for seq in batch.seqs:
            assert seq.token_ids, "empty chunk"
            for position, token_id in enumerate(seq.token_ids, seq.start):
                if token_id == PENDING:
                    token_id = self.latest[seq.request_id]
                block = seq.block_ids[position // self.block_size]
                slot = (block, position % self.block_size)
                assert slot not in written, "two sequences write one slot"
                written.add(slot)
                self.slots[block][slot[1]] = (token_id, position)
        sampled = []
        for seq in batch.seqs:
            end = seq.start + len(seq.token_ids)
            assert len(seq.block_ids) == -(-end // self.block_size)
            history = []
            for position in range(end):
                block, offset = seq.block_ids[position // self.block_size], position % self.block_size
                token_id, found = self.slots[block][offset] or (-1, -1)
                assert found == position, "stale or wrong page"
                history.append(token_id)
            if seq.samples:
                token_id = next_token(history, seq.banned_token_ids)
                sampled.append(SampledToken(request_id=seq.request_id, token_id=token_id))
        self.latest = {token.request_id: token.token_id for token in sampled}
        return sampled


def make_scheduler(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_model_len: int = 64,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 16,
    max_num_queued_reqs: int | None = None,
    enable_prefix_caching: bool = True,
) -> Scheduler:
    config = EngineConfig(
        model="fake",
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_queued_reqs=max_num_queued_reqs,
        enable_prefix_caching=enable_prefix_caching,
    )
    return Scheduler(
        config,
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        vocab_size=VOCAB,
        eos_token_ids=[EOS],
    )


def make_submit(request_id: str, prompt: Sequence[int], **fields: object) -> Submit:
    """A greedy request; ``priority``, ``deadline_s`` and ``cache_salt`` go to Submit, the rest to
    SamplingParams."""
    outer = {k: fields.pop(k) for k in ("priority", "deadline_s", "cache_salt") if k in fields}
    params = SamplingParams(temperature=0.0, **fields)  # type: ignore[arg-type]
    return Submit(request_id=request_id, prompt_token_ids=list(prompt), params=params, **outer)  # type: ignore[arg-type]


def expected_output(submit: Submit, max_total_tokens: int) -> tuple[list[int], str]:
    """Tokens and finish reason of a request by definition, without pages, chunks or neighbours."""
    params = submit.params
    stop_ids = [*params.stop_token_ids, *([] if params.ignore_eos else [EOS])]
    tokens = list(submit.prompt_token_ids)
    outputs: list[int] = []
    while True:
        banned = stop_ids if len(outputs) < params.min_tokens else []
        outputs.append(next_token(tokens, banned))
        tokens.append(outputs[-1])
        if outputs[-1] in stop_ids:
            return outputs, "stop"
        if len(tokens) >= max_total_tokens or len(outputs) == params.max_tokens:
            return outputs, "length"


class Collector:
    """Gathers what a scheduler says about each request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.finish: dict[str, str] = {}
        self.failed: dict[str, Failed] = {}
        self.cached: dict[str, int] = {}

    def add(self, results: Sequence[TokenOut | Failed]) -> None:
        for result in results:
            assert result.request_id not in self.finish
            assert result.request_id not in self.failed
            if isinstance(result, Failed):
                self.failed[result.request_id] = result
                continue
            if result.request_id not in self.tokens:
                assert result.num_cached_tokens is not None
                self.cached[result.request_id] = result.num_cached_tokens
            self.tokens.setdefault(result.request_id, []).extend(result.token_ids)
            if result.finish_reason is not None:
                self.finish[result.request_id] = result.finish_reason


class Loop:
    """Runs the steps of a scheduler; with ``overlap`` each is committed after the next one is launched."""

    def __init__(self, scheduler: Scheduler, runner: FakeRunner, collector: Collector, overlap: bool) -> None:
        self.scheduler, self.runner, self.collector, self.overlap = scheduler, runner, collector, overlap
        self.flying: tuple[ScheduledBatch, list[SampledToken]] | None = None

    def land(self) -> None:
        if self.flying is not None:
            self.collector.add(self.scheduler.commit(*self.flying))
            self.flying = None

    def step(self) -> ScheduledBatch | None:
        if self.scheduler.needs_results:
            self.land()
        batch = self.scheduler.schedule()
        launched = None if batch is None else (batch, self.runner.execute(batch))
        self.land()
        self.flying = launched
        if not self.overlap:
            self.land()
        return batch


def run_until_idle(
    scheduler: Scheduler, runner: FakeRunner, collector: Collector | None = None, *, loop: Loop | None = None
) -> Collector:
    collector = collector or Collector()
    loop = loop or Loop(scheduler, runner, collector, overlap=False)
    while scheduler.has_work or loop.flying is not None:
        was_flying = loop.flying is not None
        batch = loop.step()
        assert batch is not None or was_flying, "work but no step"
        check_scheduler(scheduler)
    assert scheduler.blocks.num_available == scheduler.blocks.num_blocks, "pages leaked"
    return collector
