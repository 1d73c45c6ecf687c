"""The host CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch


class CpuBackend:
    """All cores of the host and the memory this process may use."""

    name = "cpu"
    has_graphs = False
    has_fp8 = True
    # Why so little: activations and the rest of the machine live in the same memory.
    pool_share: float | None = 0.25
    device = torch.device("cpu")

    def total_memory(self) -> int:
        return _meminfo("MemTotal")

    def free_memory(self) -> int:
        """Available memory of the machine or of the control group, whichever is less."""
        return min(_meminfo("MemAvailable"), _cgroup_left(Path("/sys/fs/cgroup")))

    def planning(self) -> AbstractContextManager[None]:
        return nullcontext()

    def peak_memory(self, run: Callable[[], object]) -> int:
        return 0

    def faults(self) -> AbstractContextManager[None]:
        return nullcontext()


def _meminfo(field: str) -> int:
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {field} line")


def _cgroup_left(folder: Path) -> int:
    """Bytes left under the limit of a version 2 control group; a huge number without a limit."""
    unlimited = 1 << 62
    limit, current = folder / "memory.max", folder / "memory.current"
    if not (limit.is_file() and current.is_file()):
        return unlimited
    text = limit.read_text().strip()
    return unlimited if text == "max" else max(0, int(text) - int(current.read_text()))
