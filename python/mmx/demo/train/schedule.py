"""What each optimiser step trains on: row length, share of needle rows, selection, learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from mmx.demo.train.model import DENSE, TRAINED


@dataclass(frozen=True)
class Phase:
    """A run of steps that cycles through ``lengths``; rows of one step are equally long."""

    steps: int
    lengths: tuple[int, ...]
    needle_share: float
    selector: str = DENSE


@dataclass(frozen=True)
class Step:
    length: int
    needle_share: float
    selector: str
    rate: float


# Long rows come once short ones work; the last phase attends only to the blocks that the index selects.
PHASES = (
    Phase(1700, (512, 1024, 256, 512), 0.12),
    Phase(800, (512, 2048, 1024, 2048), 0.4),
    Phase(800, (512, 4096, 1024, 8192), 0.8),
    Phase(800, (512, 16384, 1024, 8192), 0.85),
    Phase(400, (512, 16384, 512, 8192), 0.9, TRAINED),
)
TOTAL = sum(phase.steps for phase in PHASES)
SHORT_NEEDLES = 0.12
WARMUP, DECAY_FROM, FLOOR = 100, 0.5, 0.02


def step_plan(step: int) -> Step:
    """Return the plan of one step; rows up to 1024 tokens keep the short mix in every phase."""
    rate = min(1.0, (step + 1) / WARMUP)
    if step > DECAY_FROM * TOTAL:
        left = (TOTAL - step) / (TOTAL * (1 - DECAY_FROM))
        rate = max(FLOOR, left)
    for phase in PHASES:
        if step < phase.steps:
            length = phase.lengths[step % len(phase.lengths)]
            share = SHORT_NEEDLES if length <= 1024 else phase.needle_share
            return Step(length, share, phase.selector, rate)
        step -= phase.steps
    raise ValueError(f"step must be below {TOTAL}, got {step + TOTAL}")
