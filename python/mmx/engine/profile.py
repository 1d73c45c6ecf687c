"""Profiles of an engine's steps, started and ended by messages."""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable

from mmx.protocol import Profile, Profiled

log = logging.getLogger("mmx.engine")


class Recording(Protocol):
    def write(self, path: str) -> None:
        """Stop, and write what was recorded."""


@runtime_checkable
class Traced(Protocol):
    """A runner that can record what it does."""

    def start_trace(self, *, with_stack: bool) -> Recording: ...


class Profiler:
    """At most one recording at a time of ``runner``."""

    def __init__(self, runner: object) -> None:
        self._runner = runner
        self._recording: Recording | None = None
        self._path = ""
        self._num_steps: int | None = None

    def handle(self, message: Profile) -> Profiled:
        """Start or end."""
        if not message.path:
            return self._end()
        if self._recording is not None:
            return Profiled(error="a profile is being recorded already")
        if not isinstance(self._runner, Traced):
            return Profiled(error="this engine can not be profiled")
        self._recording = self._runner.start_trace(with_stack=message.with_stack)
        self._path, self._num_steps = message.path, message.num_steps
        return Profiled()

    def count_step(self) -> None:
        """A step was taken; the last one that was asked for ends the recording."""
        if self._recording is None or self._num_steps is None:
            return
        self._num_steps -= 1
        if self._num_steps <= 0:
            done = self._end()
            log.info("profile: %s", done.error or done.path)

    def _end(self) -> Profiled:
        recording, self._recording = self._recording, None
        if recording is None:
            return Profiled(error="no profile is being recorded")
        try:
            recording.write(self._path)
        except OSError as error:
            return Profiled(error=f"the profile can not be written: {error}")
        return Profiled(path=self._path)
