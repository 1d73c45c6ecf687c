"""Counters, gauges and histograms in the Prometheus text format.

Recording costs a list index and an addition; all text work happens when the page is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Value:
    """One series of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        yield f"{name}{{{labels}}} {_number(self.value)}"


class Histogram:
    """One series of a histogram; ``bounds`` are inclusive upper bounds, rising."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def lines(self, name: str, labels: str) -> Iterator[str]:
        running = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {running}'
        yield f"{name}_sum{{{labels}}} {_number(self.total)}"
        yield f"{name}_count{{{labels}}} {running}"


class Family:
    """All series of one name. ``label_names`` are beside those that every series carries; ``alias`` says
    whether the name also exists in the second name set."""

    def __init__(
        self,
        name: str,
        kind: str,
        help: str,
        *,
        label_names: tuple[str, ...] = (),
        bounds: Sequence[float] = (),
        alias: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.label_names = label_names
        self.alias = alias
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Value | Histogram] = {}

    def value(self, *labels: str) -> Value:
        """The series with these label values, made when it is first asked for."""
        series = self._get(labels)
        assert isinstance(series, Value)
        return series

    def histogram(self, *labels: str) -> Histogram:
        series = self._get(labels)
        assert isinstance(series, Histogram)
        return series

    def _get(self, labels: tuple[str, ...]) -> Value | Histogram:
        series = self._series.get(labels)
        if series is None:
            if len(labels) != len(self.label_names):
                raise ValueError(f"metric {self.name} takes labels {self.label_names}, got {labels}")
            series = Histogram(self._bounds) if self.kind == "histogram" else Value()
            self._series[labels] = series
        return series

    def render(self, prefix: str, common: str, openmetrics: bool) -> Iterator[str]:
        name = prefix + self.name
        sample = name + "_total" if self.kind == "counter" else name
        # Why: the classic format names a counter with its suffix in the comments, OpenMetrics without.
        shown = name if openmetrics else sample
        yield f"# HELP {shown} {self.help}"
        yield f"# TYPE {shown} {self.kind}"
        for values, series in self._series.items():
            own = [f'{key}="{escape(value)}"' for key, value in zip(self.label_names, values, strict=True)]
            yield from series.lines(sample, ",".join([common, *own]))


def render(
    families: Sequence[Family], common: dict[str, str], aliases: Sequence[str], openmetrics: bool
) -> bytes:
    """The page: every family under ``mmx_``, those with an alias also under each prefix in ``aliases``."""
    labels = ",".join(f'{key}="{escape(value)}"' for key, value in common.items())
    lines: list[str] = []
    for family in families:
        for prefix in ("mmx_", *(aliases if family.alias else ())):
            lines += family.render(prefix, labels, openmetrics)
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
