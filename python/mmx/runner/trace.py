"""A record of what host and device do, for a trace viewer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Trace:
    """Recording from now on."""

    def __init__(self, *, with_stack: bool) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, with_stack=with_stack)
        self._profile.start()

    def write(self, path: str) -> None:
        """Stop, and write the record in Chrome's format; compressed if ``path`` ends with .gz."""
        self._profile.stop()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(path)
