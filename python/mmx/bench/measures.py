"""Numbers from answers: definitions in the docstrings, one place each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mmx.bench.events import Answer
from mmx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """A completed request in tokens and seconds. ``per_token``: gaps, one for each token after the first
    event; None if nothing tells how many tokens each event carried."""

    answer: Answer
    input_len: int
    output_len: int
    per_token: list[float] | None

    @property
    def tpot(self) -> float | None:
        """(latency - TTFT) / (tokens - 1); None below two tokens and for an answer in one piece."""
        if self.output_len < 2 or len(self.answer.events) < 2:
            return None
        return (self.answer.latency - self.answer.ttft) / (self.output_len - 1)


@dataclass(frozen=True)
class Measures:
    """Seconds, tokens and rates per second of one run. ``num_without_itl``: completed requests that are
    missing in ``itl_per_token``."""

    requests: list[Request]
    num_failed: int
    duration: float
    peak_output_tokens: int
    peak_concurrency: int
    goodput: float | None
    num_without_itl: int

    @property
    def input_tokens(self) -> int:
        return sum(request.input_len for request in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(request.output_len for request in self.requests)

    @property
    def cached_tokens(self) -> int | None:
        """None if no answer tells."""
        counts = [r.answer.cached_tokens for r in self.requests if r.answer.cached_tokens is not None]
        return sum(counts) if counts else None

    def per_second(self, amount: float) -> float:
        """``amount`` over the duration; 0 without one."""
        return amount / self.duration if self.duration > 0 else 0.0

    @property
    def user_throughput(self) -> float:
        """Mean over requests of output tokens / latency."""
        rates = [r.output_len / r.answer.latency for r in self.requests if r.answer.latency > 0]
        return statistics.fmean(rates) if rates else 0.0

    def values(self, metric: str) -> list[float]:
        """All samples of ttft, tpot, itl, e2el or itl_per_token, in seconds."""
        match metric:
            case "ttft":
                return [r.answer.ttft for r in self.requests]
            case "e2el":
                return [r.answer.latency for r in self.requests]
            case "tpot":
                return [r.tpot for r in self.requests if r.tpot is not None]
            case "itl":
                return [gap for r in self.requests for gap in r.answer.gaps]
            case "itl_per_token":
                return [gap for r in self.requests for gap in r.per_token or ()]
        raise ValueError(f"metric: expected ttft, tpot, itl, e2el or itl_per_token, got {metric!r}")


@dataclass(frozen=True)
class Statistics:
    """In ms. ``percentiles``: rank -> value, linear between neighbours."""

    mean: float
    median: float
    std: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, seconds: Sequence[float], ranks: Sequence[float]) -> Statistics | None:
        """None without samples."""
        if not seconds:
            return None
        values = sorted(1000 * value for value in seconds)
        return cls(
            mean=statistics.fmean(values),
            median=_percentile(values, 50),
            std=statistics.pstdev(values),
            percentiles={rank: _percentile(values, rank) for rank in ranks},
        )


def measure(
    answers: Sequence[Answer],
    input_lens: Sequence[int | None],
    tokenizer: Tokenizer | None,
    goodput: Sequence[tuple[str, float]] = (),
) -> Measures:
    """Numbers of a run. ``input_lens``: as the client counts them, None where only the server can.

    ValueError if tokens can not be counted: the server sends no usage and there is no tokenizer.
    """
    requests = []
    for answer, input_len in zip(answers, input_lens, strict=True):
        if not answer.error:
            requests.append(_request(answer, input_len, tokenizer))
    duration = max(a.end for a in answers) - min(a.start for a in answers) if answers else 0.0
    good = sum(_is_good(request, goodput) for request in requests)
    return Measures(
        requests=requests,
        num_failed=len(answers) - len(requests),
        duration=duration,
        peak_output_tokens=_peak_tokens(requests, min((a.start for a in answers), default=0.0)),
        peak_concurrency=_peak_concurrency(answers),
        goodput=good / duration if goodput and duration > 0 else None,
        num_without_itl=sum(request.per_token is None for request in requests),
    )


def _request(answer: Answer, input_len: int | None, tokenizer: Tokenizer | None) -> Request:
    known = [event.num_tokens for event in answer.events if event.num_tokens is not None]
    all_known = len(known) == len(answer.events)
    output_len = answer.output_tokens
    if output_len is None and all_known:
        output_len = sum(known)
    if output_len is None and tokenizer is not None:
        output_len = len(tokenizer.encode_plain(answer.text))
    if input_len is None:
        input_len = answer.input_tokens
    if input_len is None or output_len is None:
        raise ValueError("the server sends no usage: --tokenizer FOLDER is needed to count tokens")
    if not all_known:
        known = _counted(answer, output_len, tokenizer)
    return Request(answer, input_len, output_len, _gaps_per_token(answer, known) if known else None)


def _counted(answer: Answer, output_len: int, tokenizer: Tokenizer | None) -> list[int]:
    """Tokens of each event where the server does not tell them; empty if they can not be known."""
    if output_len == len(answer.events):
        return [1] * output_len
    if tokenizer is None:
        return []
    return [max(1, len(tokenizer.encode_plain(event.text))) for event in answer.events]


def _gaps_per_token(answer: Answer, counts: Sequence[int]) -> list[float]:
    """A gap before k tokens is k gaps of its k-th part. Events of one read have one time and are one gap;
    a gap that ends without a token is part of the next."""
    timed = zip(answer.events, counts, strict=True)
    reads = [(now, sum(k for _, k in read)) for now, read in groupby(timed, key=lambda pair: pair[0].time)]
    gaps: list[float] = []
    last = reads[0][0]
    for now, num_tokens in reads[1:]:
        if num_tokens:
            gaps += [(now - last) / num_tokens] * num_tokens
            last = now
    return gaps


def _is_good(request: Request, limits: Sequence[tuple[str, float]]) -> bool:
    """Whether a request meets all limits (ms); a TPOT that does not exist meets any."""
    values = {"ttft": request.answer.ttft, "tpot": request.tpot or 0.0, "e2el": request.answer.latency}
    return all(1000 * values[name] <= limit for name, limit in limits)


def _peak_tokens(requests: Sequence[Request], begin: float) -> int:
    """Most output tokens in one of the seconds since ``begin``."""
    buckets: dict[int, int] = {}
    for request in requests:
        events = request.answer.events
        counts = [event.num_tokens for event in events]
        rest = request.output_len - sum(count or 0 for count in counts)
        num_unknown = counts.count(None)
        for event, count in zip(events, counts, strict=True):
            if count is None:
                # Tokens that the server does not assign to events are spread over these evenly.
                count = rest // num_unknown
                rest, num_unknown = rest - count, num_unknown - 1
            second = int(event.time - begin)
            buckets[second] = buckets.get(second, 0) + count
    return max(buckets.values(), default=0)


def _peak_concurrency(answers: Sequence[Answer]) -> int:
    """Most requests in flight at one time; one that ends as another starts is not counted with it."""
    edges = sorted([(a.start, 1) for a in answers] + [(a.end, -1) for a in answers])
    peak = now = 0
    for _, step in edges:
        now += step
        peak = max(peak, now)
    return peak


def _percentile(values: Sequence[float], rank: float) -> float:
    """Of sorted values, linear between neighbours."""
    position = (len(values) - 1) * rank / 100
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)
