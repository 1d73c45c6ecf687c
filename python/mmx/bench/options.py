"""Flags of ``mmx bench serve``. Unambiguous beginnings of a flag are enough, ``_`` may stand for ``-``."""

from __future__ import annotations

import argparse
import difflib
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

COMPLETIONS = ("openai", "vllm", "trtllm")
CHAT = ("openai-chat", "vllm-chat", "anthropic")
METRICS = ("ttft", "tpot", "itl", "e2el")
DATASETS = ("random", "prefix_repetition", "sharegpt", "custom")
STYLES = {"vllm": "vllm", "trtllm": "trtllm", "trt": "trtllm", "sglang": "sglang", "all": "all"}
STORED_PERCENTILES = (50.0, 90.0, 95.0, 99.0)


class Options(argparse.Namespace):
    """Lengths in tokens, rates in requests/s, goodput limits in ms."""

    backend: str
    base_url: str | None
    host: str
    port: int
    endpoint: str | None
    header: list[tuple[str, str]]
    api_key: str | None
    model: str | None
    served_model_name: str | None
    tokenizer: str | None
    dataset_name: str
    dataset_path: str | None
    num_prompts: int
    seed: int
    max_concurrency: int | None
    request_rate: float
    burstiness: float
    ramp_up_strategy: str | None
    ramp_up_start_rps: float | None
    ramp_up_end_rps: float | None
    random_input_len: int
    random_output_len: int
    random_prefix_len: int
    random_range_ratio: float
    range_ratio_style: str
    random_ids: bool
    tokenize_on_client: bool
    prefix_repetition_prefix_len: int
    prefix_repetition_suffix_len: int
    prefix_repetition_num_prefixes: int
    prefix_repetition_output_len: int
    sharegpt_output_len: int | None
    custom_output_len: int
    use_chat_template: bool
    ignore_eos: bool
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    extra_body: dict[str, Any]
    logprobs: int | None
    stream: bool
    num_warmups: int
    test_input: str
    ready_check_timeout_sec: float
    percentile_metrics: tuple[str, ...]
    metric_percentiles: tuple[float, ...] | None
    goodput: list[tuple[str, float]]
    output_style: str
    save_result: bool
    save_detailed: bool
    append_result: bool
    result_dir: str | None
    result_filename: str | None
    metadata: list[tuple[str, str]]
    label: str | None
    request_id_prefix: str
    progress: bool

    @property
    def is_chat(self) -> bool:
        return self.backend in CHAT

    @property
    def url(self) -> str:
        """Where the server is, without the path of an endpoint."""
        return (self.base_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def path(self) -> str:
        """The endpoint: the given one or the usual one of the backend."""
        chat = "/v1/messages" if self.backend == "anthropic" else "/v1/chat/completions"
        return self.endpoint or (chat if self.is_chat else "/v1/completions")

    @property
    def printed_percentiles(self) -> tuple[float, ...]:
        """Those of the printed table, 0 to 100."""
        return self.metric_percentiles or (99.0,)

    @property
    def stored_percentiles(self) -> tuple[float, ...]:
        """Those of the result file, 0 to 100, ascending."""
        return tuple(sorted({*STORED_PERCENTILES, *(self.metric_percentiles or ())}))


class _Parser(argparse.ArgumentParser):
    def nearest_error(self, unknown: str) -> NoReturn:
        near = difflib.get_close_matches(unknown.partition("=")[0], list(self._option_string_actions), 1)
        self.error(f"unknown flag {unknown!r}" + (f"; did you mean {near[0]}?" if near else ""))


def make_parser() -> _Parser:
    """All flags with their defaults."""
    parser = _Parser(prog="mmx bench serve", description="Load a server, measure throughput and latencies.")
    add = parser.add_argument
    add("--backend", choices=COMPLETIONS + CHAT, default="openai", help="which API is loaded")
    add("--base-url", help="http://host:port of the server, instead of --host and --port")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--endpoint", help="path of the API, by default the backend's")
    add("--header", type=_pair, action="append", default=[], metavar="K=V", help="may be repeated")
    add("--api-key", help="sent as bearer token; OPENAI_API_KEY is read if this is not given")
    add("--model", help="name to ask for, by default the server's first; a folder also gives the tokenizer")
    add("--served-model-name", help="name to ask for when --model is a folder")
    add("--tokenizer", help="checkpoint folder of the tokenizer, by default --model")
    add("--trust-remote-code", action="store_true", help="accepted: no code of a checkpoint is ever run")
    add("--dataset-name", choices=DATASETS, default="random")
    add("--dataset-path", help="file of sharegpt and custom")
    add("--num-prompts", type=_count, default=1000)
    add("--seed", type=int, default=0)
    add("--max-concurrency", type=_count, help="requests in flight; without it as many as arrive")
    add("--request-rate", type=_rate, default=math.inf, help="requests/s, inf: all at once")
    add("--burstiness", type=_rate, default=1.0, help="shape of the gamma gaps; 1 is a Poisson process")
    add("--ramp-up-strategy", choices=("linear", "exponential"))
    add("--ramp-up-start-rps", type=_rate)
    add("--ramp-up-end-rps", type=_rate)
    add("--random-input-len", "--input-len", type=_count, default=1024)
    add("--random-output-len", "--output-len", type=_count, default=128)
    add("--random-prefix-len", type=_size, default=0, help="shared by all prompts, in front of the input")
    add("--random-range-ratio", type=float, default=0.0, help="lengths vary by this share of the given one")
    add("--range-ratio-style", choices=("vllm", "trt"), default="vllm", help="trt: from ratio x length to it")
    add("--random-ids", action="store_true", help="each id at random, not a run of neighbours")
    add("--tokenize-on-client", action="store_true", help="send ids (completions only)")
    add("--prefix-repetition-prefix-len", type=_count, default=256)
    add("--prefix-repetition-suffix-len", type=_count, default=256)
    add("--prefix-repetition-num-prefixes", type=_count, default=10)
    add("--prefix-repetition-output-len", type=_count, default=128)
    add("--sharegpt-output-len", type=_count, help="instead of the length of the recorded answer")
    add("--custom-output-len", type=_count, default=256, help="of lines without output_tokens")
    add("--use-chat-template", action="store_true", help="completions of custom: render as a chat here")
    add("--skip-chat-template", dest="use_chat_template", action="store_false", help="the default")
    add("--ignore-eos", action="store_true", help="ask for exactly the output length")
    add("--temperature", type=float, default=0.0)
    for name, kind in _SAMPLING.items():
        add("--" + name.replace("_", "-"), type=kind)
    add("--extra-body", type=_object, default={}, metavar="JSON", help="merged into each body")
    add("--logprobs", type=_count)
    add("--non-streaming", "--no-stream", dest="stream", action="store_false", help="one answer per request")
    add("--num-warmups", type=_size, default=0, help="requests before the run that are not measured")
    add("--no-test-input", dest="test_input", action="store_const", const="none", help="no test request")
    add("--test-input", choices=("other", "same", "none"), default="other", help="prompt of the test request")
    add("--ready-check-timeout-sec", type=float, default=600.0, help="how long the server may take to answer")
    add("--percentile-metrics", type=_metrics, default=METRICS, help="blocks to print: ttft,tpot,itl,e2el")
    add("--metric-percentiles", type=_percentiles, help="to print; 50,90,95,99 are always stored")
    add("--goodput", type=_goodput, nargs="+", default=[], metavar="ttft:MS", help="limits of a good request")
    add("--output-style", choices=tuple(STYLES), default="vllm", help="layout of the printed block")
    add("--save-result", action="store_true")
    add("--save-detailed", action="store_true", help="with the times and texts of each request")
    add("--append-result", action="store_true", help="one line of JSON at the end of the file")
    add("--result-dir")
    add("--result-filename")
    add("--metadata", type=_pair, nargs="+", action="extend", default=[], metavar="K=V")
    add("--label", help="first part of the default file name")
    add("--request-id-prefix", default="bench-")
    add("--disable-tqdm", dest="progress", action="store_false", help="no progress on stderr")
    return parser


_SAMPLING: dict[str, type] = {
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
}


def sampling_fields(options: Options) -> dict[str, Any]:
    """Body fields of those sampling flags that were given, and the temperature."""
    given = {name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None}
    return {"temperature": options.temperature, **given}


def parse(argv: Sequence[str]) -> Options:
    """Options from a command line; wrong usage ends the process with 2 and a sentence on stderr."""
    parser = make_parser()
    options, unknown = parser.parse_known_args([_hyphens(token) for token in argv], Options())
    if unknown:
        parser.nearest_error(unknown[0])
    options.output_style = STYLES[options.output_style]
    for problem in _problems(options):
        parser.error(problem)
    return options


def _problems(o: Options) -> list[str]:
    """What flags can not mean together."""
    ramp = (o.ramp_up_strategy, o.ramp_up_start_rps, o.ramp_up_end_rps)
    needs_file = o.dataset_name in ("sharegpt", "custom")
    checks = [
        (
            not o.url.startswith(("http://", "https://")),
            f"--base-url: expected http://HOST:PORT, got {o.base_url!r}",
        ),
        (o.tokenize_on_client and o.is_chat, "--tokenize-on-client: chat backends take no ids, use openai"),
        (o.logprobs and o.backend == "anthropic", "--logprobs: the backend anthropic has none"),
        (any(ramp) and not all(ramp), "--ramp-up-strategy, -start-rps and -end-rps go together"),
        (any(ramp) and math.isfinite(o.request_rate), "--request-rate: leave it out with --ramp-up-strategy"),
        (not 0 <= o.random_range_ratio <= 1, "--random-range-ratio: expected a number from 0 to 1"),
        (needs_file and not o.dataset_path, f"--dataset-path: {o.dataset_name} needs a file"),
        (not needs_file and o.dataset_path, f"--dataset-path: {o.dataset_name} makes its prompts itself"),
        (o.random_ids and o.dataset_name != "random", "--random-ids: only for --dataset-name random"),
        (
            o.dataset_name == "prefix_repetition" and o.num_prompts < o.prefix_repetition_num_prefixes,
            "--num-prompts: expected at least --prefix-repetition-num-prefixes",
        ),
        (o.use_chat_template and o.is_chat, "--use-chat-template: the server of a chat backend renders"),
        (o.use_chat_template and o.dataset_name != "custom", "--use-chat-template: only for custom"),
    ]
    return [text for wrong, text in checks if wrong]


def _hyphens(token: str) -> str:
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def _size(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(METRICS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(METRICS)}, got {sorted(unknown)[0]!r}")
    return names


def _percentiles(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"expected numbers from 0 to 100, got {text!r}")
    return values


def _goodput(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    if name not in ("ttft", "tpot", "e2el"):
        raise argparse.ArgumentTypeError(f"expected ttft:MS, tpot:MS or e2el:MS, got {text!r}")
    return name, float(limit)
