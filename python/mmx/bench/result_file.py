"""The JSON result: the keys of the usual clients, and an ``mmx`` group of our own."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mmx.bench.events import Answer
from mmx.bench.measures import Measures, Statistics
from mmx.bench.options import Options

SCHEMA = 1
METRICS = ("ttft", "tpot", "itl", "itl_per_token", "e2el")


def result(
    options: Options,
    measures: Measures,
    *,
    model: str,
    tokenizer: str | None,
    now: datetime,
    argv: Sequence[str],
    server: dict[str, Any] | None,
    num_prompts: int,
    round_idx: int,
) -> dict[str, Any]:
    """All keys but the detail. ``server``: what the server says about itself."""
    m = measures
    found: dict[str, Any] = {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": model,
        "tokenizer_id": tokenizer,
        "num_prompts": num_prompts,
        "request_rate": "inf" if math.isinf(options.request_rate) else options.request_rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        **dict(options.metadata),
        "duration": m.duration,
        "completed": len(m.requests),
        "failed": m.num_failed,
        "total_input_tokens": m.input_tokens,
        "total_output_tokens": m.output_tokens,
        "request_throughput": m.per_second(len(m.requests)),
        "request_goodput": m.goodput,
        "output_throughput": m.per_second(m.output_tokens),
        "total_token_throughput": m.per_second(m.input_tokens + m.output_tokens),
        "user_throughput": m.user_throughput,
        "max_output_tokens_per_s": m.peak_output_tokens,
        "max_concurrent_requests": m.peak_concurrency,
    }
    for metric in METRICS:
        found |= _statistics(metric, measures, options.stored_percentiles)
    found["mmx"] = {
        "schema": SCHEMA,
        "command": shlex.join(["mmx", "bench", "serve", *_without_secrets(argv)]),
        "server": server,
        "cached_tokens": m.cached_tokens,
        "cold": None if m.cached_tokens is None else m.cached_tokens == 0,
        "test_request": options.test_input,
        "round": round_idx,
        "requests_without_itl_per_token": m.num_without_itl,
    }
    return found


def detail(answers: Sequence[Answer], input_lens: Sequence[int | None], measures: Measures) -> dict[str, Any]:
    """Per request, in the order they were sent; times in seconds, starts since the first one. Failed
    requests have zeros and their error."""
    done = {id(request.answer): request for request in measures.requests}
    requests = [done.get(id(answer)) for answer in answers]
    begin = min((a.start for a in answers), default=0.0)
    latencies = [r.answer.latency if r else 0.0 for r in requests]
    return {
        "input_lens": [r.input_len if r else n or 0 for r, n in zip(requests, input_lens, strict=True)],
        "output_lens": [r.output_len if r else 0 for r in requests],
        "ttfts": [r.answer.ttft if r else 0.0 for r in requests],
        "itls": [r.answer.gaps if r else [] for r in requests],
        "latencies": latencies,
        "e2els": latencies,
        "start_times": [a.start - begin for a in answers],
        "queue_times": [a.start - a.arrival for a in answers],
        "generated_texts": [a.text for a in answers],
        "errors": [a.error for a in answers],
    }


def result_path(options: Options, model: str, now: datetime) -> Path:
    """Where the result goes."""
    name = options.result_filename
    if name is None:
        rate = "inf" if math.isinf(options.request_rate) else f"{options.request_rate:g}"
        limit = f"-concurrency{options.max_concurrency}" if options.max_concurrency is not None else ""
        parts = [options.label or options.backend, f"{rate}qps{limit}", model.rstrip("/").split("/")[-1]]
        name = "-".join([*parts, now.strftime("%Y%m%d-%H%M%S")]) + ".json"
    return Path(options.result_dir or ".") / name


def save(path: Path, found: dict[str, Any], *, append: bool) -> None:
    """Write; the folder is made. ``append``: one more line of a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if append else "wb") as file:
        file.write(msgspec.json.encode(found) + b"\n")


def _statistics(metric: str, measures: Measures, ranks: Sequence[float]) -> dict[str, float | None]:
    found = Statistics.of(measures.values(metric), ranks)
    keys: dict[str, float | None] = {f"{name}_{metric}_ms": None for name in ("mean", "median", "std")}
    keys |= {f"p{rank:g}_{metric}_ms": None for rank in ranks}
    if found is not None:
        values = (found.mean, found.median, found.std, *found.percentiles.values())
        keys = dict(zip(keys, values, strict=True))
    return keys


def _without_secrets(argv: Sequence[str]) -> list[str]:
    """The command line with keys and headers masked."""
    shown: list[str] = []
    for token in argv:
        name, equals, _ = token.partition("=")
        masked = name.replace("_", "-").startswith(("--api", "--hea"))
        previous = shown[-1].replace("_", "-") if shown else ""
        if masked and equals:
            shown.append(f"{name}=***")
        elif previous.startswith(("--api", "--hea")) and "=" not in previous:
            shown.append("***")
        else:
            shown.append(token)
    return shown
