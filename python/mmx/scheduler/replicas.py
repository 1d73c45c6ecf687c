"""Data-parallel groups behind one scheduler's face: each has its own pages, all of them step together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mmx.batch import SampledToken, ScheduledBatch
from mmx.config import EngineConfig
from mmx.protocol import EngineStats, Failed, Submit, TokenOut
from mmx.scheduler.admission import refusal
from mmx.scheduler.scheduler import Scheduler

# A waiting request costs its group as much as so many running ones.
WAITING_WEIGHT = 4


class Replicas:
    """One ``Scheduler`` per group; its methods do here what they do there, for the group concerned or for
    all.

    A step is the groups' steps one after the other, with ``ScheduledBatch.group_sizes``.
    """

    def __init__(self, config: EngineConfig, num_groups: int, **sizes: Any) -> None:
        # Why different seeds: requests without one would draw alike in all groups.
        self.groups = [
            Scheduler(msgspec.structs.replace(config, seed=config.seed + i), **sizes)
            for i in range(num_groups)
        ]
        self.max_num_seqs = sum(group.max_num_seqs for group in self.groups)
        self.max_num_batched_tokens = self.groups[0].max_num_batched_tokens
        self.max_num_queued_reqs = sum(group.max_num_queued_reqs for group in self.groups)
        self._num_steps = 0
        self._flights: list[tuple[ScheduledBatch, list[ScheduledBatch | None]]] = []

    @property
    def has_work(self) -> bool:
        return any(group.has_work for group in self.groups)

    @property
    def needs_results(self) -> bool:
        return any(group.needs_results for group in self.groups)

    def submit(self, message: Submit, now: float) -> Failed | None:
        """Queue a request where the least is to be done; a cached prefix counts for a group."""

        def cost(group: Scheduler) -> float:
            stats = group.stats()
            load = stats.num_running + WAITING_WEIGHT * stats.num_waiting
            return load - WAITING_WEIGHT * group.num_cached_tokens(message) / len(message.prompt_token_ids)

        if (failed := refusal(message, self.groups[0].limits)) is not None:
            return failed
        owners = [group for group in self.groups if group.holds(message.request_id)]
        for group in owners or sorted(self.groups, key=cost):
            failed = group.submit(message, now)
            if failed is None or failed.code != "queue_full":
                break
        return failed

    def abort(self, request_ids: Iterable[str]) -> None:
        ids = list(request_ids)
        for group in self.groups:
            group.abort(ids)

    def abort_all(self) -> None:
        self._flights.clear()
        for group in self.groups:
            group.abort_all()

    def expire(self, now: float) -> list[Failed]:
        return [failed for group in self.groups for failed in group.expire(now)]

    def reset_prefix_cache(self) -> None:
        for group in self.groups:
            group.reset_prefix_cache()

    def schedule(self) -> ScheduledBatch | None:
        parts = [group.schedule() for group in self.groups]
        if all(part is None for part in parts):
            return None
        self._num_steps += 1
        batch = _joined(self._num_steps, parts)
        self._flights.append((batch, parts))
        return batch

    def commit(self, batch: ScheduledBatch, sampled: Sequence[SampledToken]) -> list[TokenOut | Failed]:
        results = {token.request_id: token for token in sampled}
        outputs: list[TokenOut | Failed] = []
        for group, part in self._land(batch):
            outputs += group.commit(part, [results[seq.request_id] for seq in part.seqs if seq.samples])
        return outputs

    def fail(self, batch: ScheduledBatch, message: str, code: str, status: int) -> list[Failed]:
        return [
            failed for group, part in self._land(batch) for failed in group.fail(part, message, code, status)
        ]

    def fail_chunks(
        self, batch: ScheduledBatch, message: str, code: str, status: int
    ) -> tuple[ScheduledBatch, list[Failed]]:
        newest, parts = self._flights.pop()
        if newest is not batch:
            raise ValueError(f"step {batch.step} is not the newest in flight")
        failures: list[Failed] = []
        kept: list[ScheduledBatch | None] = []
        for group, part in zip(self.groups, parts, strict=True):
            rest, failed = (None, []) if part is None else group.fail_chunks(part, message, code, status)
            kept.append(rest)
            failures += failed
        rest_of_all = _joined(batch.step, kept)
        self._flights.append((rest_of_all, kept))
        return rest_of_all, failures

    def stats(self) -> EngineStats:
        """Sums over the groups, but for the steps, which they take together."""
        parts = [msgspec.structs.asdict(group.stats()) for group in self.groups]
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        return EngineStats(**sums | {"num_steps": self._num_steps})

    def _land(self, batch: ScheduledBatch) -> list[tuple[Scheduler, ScheduledBatch]]:
        """Groups with something to do in the oldest step in flight, which no longer is."""
        if not self._flights or self._flights[0][0] is not batch:
            raise ValueError(f"step {batch.step} is not the oldest in flight")
        _, parts = self._flights.pop(0)
        return [(group, part) for group, part in zip(self.groups, parts, strict=True) if part is not None]


def _joined(step: int, parts: Sequence[ScheduledBatch | None]) -> ScheduledBatch:
    sizes = [0 if part is None else len(part.seqs) for part in parts]
    seqs = [seq for part in parts if part is not None for seq in part.seqs]
    return ScheduledBatch(step=step, seqs=seqs, group_sizes=sizes)


def make_scheduler(config: EngineConfig, **sizes: Any) -> Scheduler | Replicas:
    """The scheduler of an engine, for as many groups as its layout has; ``sizes`` as for ``Scheduler``."""
    num_groups = config.parallel.num_groups
    return Scheduler(config, **sizes) if num_groups == 1 else Replicas(config, num_groups, **sizes)
