"""The engine: one loop around a scheduler and a runner.

With a runner whose device works on its own, step n + 1 is planned and launched while step n runs, and the
results of step n are taken afterwards: the device never waits for the host.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import NamedTuple, Protocol

from mmx.batch import SampledToken, ScheduledBatch
from mmx.config import EngineConfig
from mmx.engine.channel import Channel
from mmx.engine.profile import Profiler
from mmx.errors import DeviceLostError
from mmx.grammar.constraints import Constraints, Masks
from mmx.protocol import (
    Abort,
    Failed,
    FromEngine,
    Profile,
    Ready,
    ResetPrefixCache,
    Shutdown,
    StepOutput,
    Submit,
    ToEngine,
    TokenOut,
)
from mmx.scheduler import make_scheduler

log = logging.getLogger("mmx.engine")

HOLD_SECONDS = 0.01  # between looks at the channel while nothing but grammars is worked on


class Flight(Protocol):
    """A launched step."""

    def result(self) -> list[SampledToken]:
        """Wait for the step; one result per sampling sequence, in batch order. Logits that are not finite are
        reported in ``SampledToken.error``."""


class Runner(Protocol):
    """A model with its weights, page pool and sampler on one device (or one rank's share of it).

    ``asynchronous``: it pays to launch a step before the one before it is done.
    """

    num_blocks: int
    block_size: int
    max_model_len: int
    max_model_len_reason: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    family: str
    device: str
    dtype: str
    asynchronous: bool

    def launch(self, batch: ScheduledBatch, masks: Masks) -> Flight:
        """Start a step; ``PENDING`` is what the step before it samples for the same request. ``masks`` waits
        for token masks, so it is asked last.

        A launch that raises has changed nothing that the step computes from. Any exception, of the flight
        too, fails requests of the batch; ``mmx.errors.DeviceLostError`` ends the engine.
        """


class _Step(NamedTuple):
    """A step that has been launched and not committed."""

    batch: ScheduledBatch
    flight: Flight
    launched: float


Results = list[Failed | TokenOut]
_Fault = tuple[str, str, int]  # message, code and status of the requests that it ends


def _fault(error: Exception) -> _Fault:
    """What clients are told; the log has the rest."""
    if isinstance(error, MemoryError):
        return "the device ran out of memory in this step", "out_of_memory", 503
    return "the engine failed in this step", "engine_error", 500


class Engine:
    """Serves requests from a channel: drain messages, schedule, launch, commit, publish."""

    def __init__(self, config: EngineConfig, runner: Runner, channel: Channel) -> None:
        self.runner = runner
        self.channel = channel
        self.scheduler = make_scheduler(
            config,
            num_blocks=runner.num_blocks,
            block_size=runner.block_size,
            max_model_len=runner.max_model_len,
            vocab_size=runner.vocab_size,
            eos_token_ids=runner.eos_token_ids,
        )
        self.stopped = False
        room = min(runner.max_model_len, runner.num_blocks * runner.block_size)
        self._constraints = Constraints(config.model, room)
        self._profiler = Profiler(runner)
        self.overlaps = config.async_scheduling and runner.asynchronous
        self._step: _Step | None = None
        self._landed = 0.0

    def ready(self) -> Ready:
        """What the front end needs to know before the first request."""
        return Ready(
            model_family=self.runner.family,
            device=self.runner.device,
            dtype=self.runner.dtype,
            vocab_size=self.runner.vocab_size,
            max_model_len=self.runner.max_model_len,
            max_model_len_reason=self.runner.max_model_len_reason,
            block_size=self.runner.block_size,
            num_blocks=self.runner.num_blocks,
            max_num_seqs=self.scheduler.max_num_seqs,
            max_num_batched_tokens=self.scheduler.max_num_batched_tokens,
            max_num_queued_reqs=self.scheduler.max_num_queued_reqs,
        )

    def run(self) -> None:
        """Serve until told to shut down. Without work it sleeps in the channel."""
        self._constraints.warm()
        while not self.stopped:
            self.step()

    def step(self) -> None:
        """Launch the next step, take the results of the one in flight (without overlap: of the same)."""
        results = self._drain()
        before, self._step = self._step, None
        if before is not None and self.scheduler.needs_results:
            results += self._land(before)
            self._publish(results, before)
            results, before = [], None
        batch = self.scheduler.schedule()
        step, fault = (None, None) if batch is None else self._launch(batch)
        if batch is not None and fault is not None:
            if before is not None:
                results += self._land(before)
                self._publish(results, before)
                results, before = [], None
            step, failures = self._relaunch(batch, fault)
            results += failures
        if self.overlaps:
            self._step = step
        elif step is not None:
            before = step
        if before is not None:
            results += self._land(before)
        self._publish(results, before)

    def abort_all(self) -> None:
        """End every request. The step in flight is waited for: a rank that has its results would tell them to
        nobody."""
        step, self._step = self._step, None
        self._constraints.clear()
        if step is not None:
            with suppress(DeviceLostError):  # the next step says so again
                self._land(step)
        self.scheduler.abort_all()

    def _drain(self) -> Results:
        """Take in what the front end sent; blocks only when there is nothing else to do."""
        failures: Results = []
        idle = self._step is None and not self.scheduler.has_work
        for message in self.channel.receive(wait=idle and not self._constraints.holding):
            if (failed := self._handle(message)) is not None:
                failures.append(failed)
        now = time.monotonic()
        submits, refused = self._constraints.released(HOLD_SECONDS if idle else 0.0)
        failures += refused
        for submit in submits:
            if (failed := self.scheduler.submit(submit, now)) is not None:
                failures.append(failed)
        failures += self.scheduler.expire(now)
        return failures

    def _handle(self, message: ToEngine) -> Failed | None:
        match message:
            case Submit(constraint=None):
                return self.scheduler.submit(message, time.monotonic())
            case Submit():
                return self._constraints.hold(message)
            case Abort():
                self.scheduler.abort(message.request_ids)
                self._constraints.drop(message.request_ids)
            case Profile():
                self.channel.send([self._profiler.handle(message)])
            case ResetPrefixCache():
                self.scheduler.reset_prefix_cache()
            case Shutdown():
                self.stopped = True
                self.abort_all()
        return None

    def _launch(self, batch: ScheduledBatch) -> tuple[_Step | None, _Fault | None]:
        """The step, or why there is none."""
        launched = time.monotonic()
        try:
            flight = self.runner.launch(batch, self._constraints.masks)
        except DeviceLostError:
            raise
        except Exception as error:
            log.exception("step %d could not be launched with %d sequences", batch.step, len(batch.seqs))
            return None, _fault(error)
        return _Step(batch, flight, launched), None

    def _relaunch(self, batch: ScheduledBatch, fault: _Fault) -> tuple[_Step | None, Results]:
        """After a launch that raised: without the prompts of the step, which are most likely at fault (memory
        grows with them), and if that raises as well, without the whole step. The decodes can be repeated,
        because they store the same values at the same places."""
        decodes, failures = self.scheduler.fail_chunks(batch, *fault)
        results: Results = [*failures]
        if failures and decodes.seqs:
            step, second = self._launch(decodes)
            if second is None:
                return step, results
            fault = second
        return None, [*results, *self.scheduler.fail(decodes, *fault)]

    def _land(self, step: _Step) -> Results:
        """Wait for a step and commit it."""
        try:
            sampled = self._constraints.explain(step.flight.result())
            return self.scheduler.commit(step.batch, sampled)
        except DeviceLostError:
            raise
        except Exception as error:
            log.exception("step %d failed with %d sequences", step.batch.step, len(step.batch.seqs))
            return [*self.scheduler.fail(step.batch, *_fault(error))]

    def _publish(self, results: Results, step: _Step | None) -> None:
        """``step``: the one whose results are among ``results``, None if there is none."""
        self._constraints.take(results)
        if step is not None:
            self._profiler.count_step()
        seconds, now = 0.0, time.monotonic()
        if step is not None:
            seconds, self._landed = now - max(step.launched, self._landed), now
        messages: list[FromEngine] = [r for r in results if isinstance(r, Failed)]
        output = StepOutput(
            outputs=[r for r in results if isinstance(r, TokenOut)],
            stats=self.scheduler.stats(),
            step_tokens=0 if step is None else step.batch.num_tokens,
            step_seconds=seconds,
        )
        messages.append(output)
        self.channel.send(messages)
