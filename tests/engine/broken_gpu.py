"""A runner module whose model makes a kernel fail on the device in steps with a prompt of 20 tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.test_faults import Faulty
from mmx.config import EngineConfig
from mmx.runner import ModelRunner
from mmx.runner import build_runner as build


def break_gpu() -> None:
    values = torch.zeros(4, device="cuda")
    values[torch.tensor([1 << 40], device="cuda")] = 1.0


def build_runner(config: EngineConfig, progress: Callable[[str, float], None]) -> ModelRunner:
    runner = build(config, progress)
    runner.model = Faulty(runner.model, break_gpu)  # type: ignore[assignment]
    return runner
