"""The engine: one loop around a scheduler and a runner."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from mmx.batch import SampledToken, ScheduledBatch
from mmx.config import EngineConfig
from mmx.engine.channel import Channel
from mmx.errors import DeviceLostError
from mmx.protocol import (
    Abort,
    Failed,
    FromEngine,
    Ready,
    ResetPrefixCache,
    Shutdown,
    StepOutput,
    Submit,
    ToEngine,
    TokenOut,
)
from mmx.scheduler import Scheduler

log = logging.getLogger("mmx.engine")


class Runner(Protocol):
    """A model with its weights, page pool and sampler on one device (or one rank's share of it)."""

    @property
    def num_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def max_model_len_reason(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> Sequence[int]: ...
    @property
    def family(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...

    def execute(self, batch: ScheduledBatch) -> list[SampledToken]:
        """Compute the step; one result per sampling sequence, in batch order.

        Logits that are not finite are reported in ``SampledToken.error``. Any exception fails the
        requests of the batch; ``mmx.errors.DeviceLostError`` ends the engine.
        """


class Engine:
    """Serves requests from a channel: drain messages, schedule, run, commit, publish."""

    def __init__(self, config: EngineConfig, runner: Runner, channel: Channel) -> None:
        self.runner = runner
        self.channel = channel
        self.scheduler = Scheduler(
            config,
            num_blocks=runner.num_blocks,
            block_size=runner.block_size,
            max_model_len=runner.max_model_len,
            vocab_size=runner.vocab_size,
            eos_token_ids=runner.eos_token_ids,
        )
        self.stopped = False

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
        while not self.stopped:
            self.step()

    def step(self) -> None:
        failures = self._drain()
        batch = self.scheduler.schedule()
        started = time.monotonic()
        outputs = [] if batch is None else self._execute(batch)
        self._publish(failures + outputs, batch, time.monotonic() - started)

    def _drain(self) -> list[Failed | TokenOut]:
        """Take in what the front end sent; blocks only when there is nothing else to do."""
        failures: list[Failed | TokenOut] = []
        for message in self.channel.receive(wait=not self.scheduler.has_work):
            if (failed := self._handle(message)) is not None:
                failures.append(failed)
        failures += self.scheduler.expire(time.monotonic())
        return failures

    def _handle(self, message: ToEngine) -> Failed | None:
        match message:
            case Submit():
                return self.scheduler.submit(message, time.monotonic())
            case Abort():
                self.scheduler.abort(message.request_ids)
            case ResetPrefixCache():
                self.scheduler.reset_prefix_cache()
            case Shutdown():
                self.stopped = True
                self.scheduler.abort_all()
        return None

    def _execute(self, batch: ScheduledBatch) -> list[TokenOut | Failed]:
        try:
            return self.scheduler.commit(batch, self.runner.execute(batch))
        except DeviceLostError:
            raise
        except Exception:
            log.exception("step %d failed with %d sequences", batch.step, len(batch.seqs))
            return [*self.scheduler.fail(batch, "the engine failed in this step", "engine_error", 500)]

    def _publish(
        self, results: list[TokenOut | Failed], batch: ScheduledBatch | None, seconds: float
    ) -> None:
        messages: list[FromEngine] = [r for r in results if isinstance(r, Failed)]
        step = StepOutput(
            outputs=[r for r in results if isinstance(r, TokenOut)],
            stats=self.scheduler.stats(),
            step_tokens=0 if batch is None else batch.num_tokens,
            step_seconds=seconds if batch is not None else 0.0,
        )
        messages.append(step)
        self.channel.send(messages)
