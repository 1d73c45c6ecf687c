"""Exceptions that end a process, each with its exit code."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What a library says, without the trace that it adds."""
    return str(error).split("\n", 1)[0]


class ConfigError(ValueError):
    """A configuration (flags, ``config.json``, a combination of them) is refused."""

    exit_code = 3


class WeightsError(ValueError):
    """A checkpoint is refused: a tensor is missing, unexpected, mis-shaped or unreadable."""

    exit_code = 4


class MemoryPlanError(ValueError):
    """Weights, page pool and workspace do not fit into the memory that may be used."""

    exit_code = 5


class LaunchError(RuntimeError):
    """The ranks do not come together: a port is taken, a rank is missing, or launchers contradict each
    other."""

    exit_code = 6


class DeviceLostError(RuntimeError):
    """The device can not run anything any more, so failing single requests would be a lie: the engine
    ends."""

    exit_code = 1
