"""The emulated library, and runs of one case on several schedules and core counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ascend.emulated import Chip, Emulator, ViolationError, library_path
from ops.compare import assert_equal

# (schedule, cores): in order, in reverse, three random ones; every core count that a chip of the family has,
# and few.
RUNS = ((0, 24), (1, 20), (2, 2), (3, 1), (4, 3))


class Counter:
    """Kernel x case x schedule runs of the session."""

    def __init__(self) -> None:
        self.cases: dict[str, int] = {}
        self.runs = 0
        self.violated = 0


COUNTER = Counter()


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    if not library_path().exists():
        if "MMX_ASCEND_EMULATED" in os.environ:
            pytest.fail(f"MMX_ASCEND_EMULATED names a library that is not there: {library_path()}")
        pytest.skip(f"the emulated AscendC kernels are not built: no {library_path().name}")
    return Emulator(library_path())


class Runner:
    """Runs a case in every schedule and demands equal outputs and no violated check."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    def __call__(
        self, op: str, params: str, make: Callable[[], tuple[dict[str, Any], list[torch.Tensor]]]
    ) -> list[torch.Tensor]:
        """``make`` returns fresh Params and the tensors to compare; the first run's are returned."""
        first: list[torch.Tensor] | None = None
        for schedule, cores in RUNS:
            values, outputs = make()
            COUNTER.runs += 1
            try:
                self.emulator.run(op, params, values, chip=Chip(num_aic=cores), schedule=schedule)
            except ViolationError:
                COUNTER.violated += 1
                raise
            if first is None:
                first = outputs
            for ours, theirs in zip(outputs, first, strict=True):
                assert_equal(ours, theirs, name=f"{op}, schedule {schedule} on {cores} cores")
        COUNTER.cases[op] = COUNTER.cases.get(op, 0) + 1
        assert first is not None
        return first


@pytest.fixture
def run_all(emulator: Emulator) -> Runner:
    return Runner(emulator)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if COUNTER.runs:
        cases = ", ".join(f"{op} {n}" for op, n in sorted(COUNTER.cases.items()))
        terminalreporter.write_line(
            f"AscendC kernels on the emulator: {COUNTER.runs} kernel x case x schedule runs, "
            f"{COUNTER.violated} checks violated (cases: {cases})"
        )
