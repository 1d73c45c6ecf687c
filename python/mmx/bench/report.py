"""The printed block, in the layout of vLLM's, TensorRT-LLM's or SGLang's client."""

from __future__ import annotations

from collections.abc import Sequence

from mmx.bench.measures import Measures, Statistics
from mmx.bench.options import Options

WIDTH = 50
TITLES = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "itl_per_token": ("Inter-token Latency per Token", "ITL/token"),
    "e2el": ("End-to-end Latency", "E2EL"),
}


def block(options: Options, measures: Measures) -> str:
    """All lines, each with a line end."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    style = options.output_style
    if style == "trtllm":
        head = _trtllm_head(measures)
    else:
        head = _sglang_head(options, measures) if style == "sglang" else _vllm_head(options, measures)
    lines += [_line(label, value) for label, value in head]
    ranks = options.printed_percentiles
    if style == "sglang":
        ranks = options.metric_percentiles or (90.0, 95.0, 99.0)
    for metric in options.percentile_metrics:
        lines += metric_lines(metric, measures, ranks)
        if metric == "itl" and style == "sglang":
            longest = max(measures.values("itl"), default=None)
            lines.append(_line("Max ITL (ms):", "n/a" if longest is None else 1000 * longest))
        if metric == "itl" and style == "all":
            lines += metric_lines("itl_per_token", measures, ranks)
    lines.append("=" * WIDTH)
    return "\n".join(lines) + "\n"


Row = tuple[str, "int | float | str"]


def _vllm_head(options: Options, m: Measures) -> list[Row]:
    rows: list[Row] = [("Successful requests:", len(m.requests)), ("Failed requests:", m.num_failed)]
    if options.max_concurrency is not None:
        rows.append(("Maximum request concurrency:", options.max_concurrency))
    if options.request_rate != float("inf"):
        rows.append(("Request rate configured (RPS):", options.request_rate))
    rows += _totals(m)
    rows += [
        ("Output token throughput (tok/s):", m.per_second(m.output_tokens)),
        ("Peak output token throughput (tok/s):", float(m.peak_output_tokens)),
        ("Peak concurrent requests:", float(m.peak_concurrency)),
        ("Total token throughput (tok/s):", m.per_second(m.input_tokens + m.output_tokens)),
    ]
    if options.output_style == "all":
        rows.append(("User throughput (tok/s):", m.user_throughput))
        if m.cached_tokens is not None and m.input_tokens:
            rows.append(("Cached share of input (%):", 100 * m.cached_tokens / m.input_tokens))
    return rows


def _sglang_head(options: Options, m: Measures) -> list[Row]:
    latencies = sum(m.values("e2el"))
    return [
        ("Backend:", options.backend),
        ("Traffic request rate:", options.request_rate),
        ("Max request concurrency:", options.max_concurrency or "not set"),
        ("Successful requests:", len(m.requests)),
        *_totals(m),
        ("Output token throughput (tok/s):", m.per_second(m.output_tokens)),
        ("Total token throughput (tok/s):", m.per_second(m.input_tokens + m.output_tokens)),
        ("Concurrency:", m.per_second(latencies)),
    ]


def _trtllm_head(m: Measures) -> list[Row]:
    return [
        ("Total requests:", len(m.requests) + m.num_failed),
        ("Successful requests:", len(m.requests)),
        ("Failed requests:", m.num_failed),
        *_totals(m),
        ("Output token throughput (tok/s):", m.per_second(m.output_tokens)),
        ("Total Token throughput (tok/s):", m.per_second(m.input_tokens + m.output_tokens)),
        ("User throughput (tok/s):", m.user_throughput),
    ]


def _totals(m: Measures) -> list[Row]:
    """The rows that every layout has in this order."""
    rows: list[Row] = [
        ("Benchmark duration (s):", m.duration),
        ("Total input tokens:", m.input_tokens),
        ("Total generated tokens:", m.output_tokens),
        ("Request throughput (req/s):", m.per_second(len(m.requests))),
    ]
    if m.goodput is not None:
        rows.append(("Request goodput (req/s):", m.goodput))
    return rows


def metric_lines(metric: str, measures: Measures, ranks: Sequence[float]) -> list[str]:
    """A section: title, mean, median, percentiles in ms; n/a without samples."""
    title, name = TITLES[metric]
    found = Statistics.of(measures.values(metric), ranks)
    rows = [f"{title:-^{WIDTH}}"]
    rows.append(_line(f"Mean {name} (ms):", found.mean if found else "n/a"))
    rows.append(_line(f"Median {name} (ms):", found.median if found else "n/a"))
    for rank in ranks:
        rows.append(_line(f"P{rank:g} {name} (ms):", found.percentiles[rank] if found else "n/a"))
    return rows


def _line(label: str, value: int | float | str) -> str:
    return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"
