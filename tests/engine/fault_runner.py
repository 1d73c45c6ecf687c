"""A runner module for the worker whose ``EngineConfig.model`` names what goes wrong.

Faults in a step happen when the sequence's prompt starts with ``TRIGGER``.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from mmx.batch import ScheduledBatch
from mmx.config import EngineConfig
from mmx.engine.null_runner import Done, NullOptions, NullRunner
from mmx.errors import DeviceLostError, MemoryPlanError, WeightsError
from mmx.grammar.constraints import Masks

TRIGGER = 13


class FaultRunner(NullRunner):
    def __init__(self, fault: str) -> None:
        super().__init__(NullOptions(step_seconds=0.001), ())
        self.fault = fault

    def launch(self, batch: ScheduledBatch, masks: Masks) -> Done:
        hit = any(seq.start == 0 and seq.token_ids[0] == TRIGGER for seq in batch.seqs)
        if hit and self.fault == "raise":
            raise RuntimeError("a kernel refused its input")
        if hit and self.fault == "device":
            raise DeviceLostError("the device does not answer")
        if hit and self.fault == "die":
            os._exit(9)
        return super().launch(batch, masks)


def build_runner(config: EngineConfig, progress: Callable[[str, float], None]) -> FaultRunner:
    if config.model == "weights":
        raise WeightsError("model.layers.0.weight: expected [4, 4], got [4, 3]")
    if config.model == "memory":
        raise MemoryPlanError("the weights need 9 GiB, 1 GiB is free")
    if config.model == "out of memory":
        raise MemoryError
    if config.model == "bug":
        raise KeyError("nonsense")
    progress("weights", 0.5)
    return FaultRunner(config.model)
