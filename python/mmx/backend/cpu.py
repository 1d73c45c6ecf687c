"""The host CPU."""

from __future__ import annotations

from pathlib import Path

import torch

POOL_SHARE = 0.25


class CpuBackend:
    """All cores of the host and the memory this process may use."""

    name = "cpu"
    has_graphs = False
    device = torch.device("cpu")

    def free_memory(self) -> int:
        """Available memory of the machine or of the control group, whichever is less."""
        return min(_available(Path("/proc/meminfo")), _cgroup_left(Path("/sys/fs/cgroup")))

    def pool_bytes(self) -> int:
        return int(self.free_memory() * POOL_SHARE)

    def pool_rule(self) -> str:
        return f"{POOL_SHARE:.0%} of the free memory"


def _available(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{meminfo} has no MemAvailable line")


def _cgroup_left(folder: Path) -> int:
    """Bytes left under the limit of a version 2 control group; a huge number without a limit."""
    unlimited = 1 << 62
    limit, current = folder / "memory.max", folder / "memory.current"
    if not (limit.is_file() and current.is_file()):
        return unlimited
    text = limit.read_text().strip()
    return unlimited if text == "max" else max(0, int(text) - int(current.read_text()))
