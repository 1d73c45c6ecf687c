"""The picture of a sweep: what the server delivers against what a user waits for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Result key on the horizontal axis -> its label; the vertical one is output throughput.
PANELS = {
    "mean_tpot_ms": "mean time per output token, ms",
    "mean_ttft_ms": "mean time to first token, ms",
    "user_throughput": "output tokens/s of one user",
}
THROUGHPUT = "output_throughput"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One curve per shape, one point per concurrency, error bars of the 95 % intervals.

    ``rows`` are those of ``sweep.rows``; points without a value are left out. Raises ImportError without
    matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for shape in dict.fromkeys(row["shape"] for row in rows):
            points = [
                row for row in rows if row["shape"] == shape and None not in (row[key], row[THROUGHPUT])
            ]
            if not points:
                continue
            x, y = [row[key] for row in points], [row[THROUGHPUT] for row in points]
            bars = {
                "xerr": [row[key + "_ci95"] or 0 for row in points],
                "yerr": [row[THROUGHPUT + "_ci95"] or 0 for row in points],
            }
            axes.errorbar(x, y, **bars, marker="o", capsize=2, label=shape)
            for row, place in zip(points, zip(x, y, strict=True), strict=True):
                axes.annotate(str(row["concurrency"]), place, xytext=(4, 4), textcoords="offset points")
        axes.set_xlabel(label)
        axes.set_ylabel("output tokens/s")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(title="input x output tokens")
    figure.savefig(path, dpi=120)
