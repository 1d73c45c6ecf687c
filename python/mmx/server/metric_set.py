"""Every metric of the server, recorded in the front end from what the engine reports per step."""

from __future__ import annotations

from mmx.protocol import EngineStats, Ready, StepOutput
from mmx.server.metrics import Family, Histogram, Value, render

TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
LATENCY_BOUNDS = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
STEP_TOKEN_BOUNDS = tuple(1 << k for k in range(15) if k not in (1, 2))
REQUEST_TOKEN_BOUNDS = tuple(m * 10**e for e in range(7) for m in (1, 2, 5) if m * 10**e <= 1 << 20)
N_BOUNDS = (1, 2, 5, 10, 20)


class Metrics:
    """The server's families; names and meanings as on the dashboards that read them."""

    def __init__(self, model_name: str, alias: str) -> None:
        self.labels = {"model_name": model_name, "engine": "0"}
        self._aliases = () if alias == "none" else (alias + ":",)
        self.families: list[Family] = []

        self.running = self._gauge("num_requests_running", "Sequences in the batch.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences in the queue.")
        self.waiting_by_reason = self._gauge_by(
            "num_requests_waiting_by_reason", "Queue by reason.", "reason"
        )
        self._waiting_for_capacity = self.waiting_by_reason.value("capacity")
        self.kv_usage = self._gauge(
            "kv_cache_usage_perc", "Share of pages used by running sequences, 0 to 1."
        )
        self.kv_cached = self._gauge("kv_cache_cached_perc", "Share of pages kept for reuse.", alias=False)
        self.prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.preemptions = self._counter("num_preemptions", "Sequences that gave up their pages for others.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self.prompt_tokens_cached = self._counter(
            "prompt_tokens_cached", "Prompt tokens that were not computed."
        )
        self.prompt_by_source = self._counter_by(
            "prompt_tokens_by_source", "Prompt tokens by origin.", "source"
        )
        self.reasoning_tokens = self._counter(
            "reasoning_tokens", "Generated tokens inside thinking.", alias=False
        )
        self.tool_calls = self._counter_by("tool_calls", "Parsed tool calls.", "outcome", alias=False)
        self.success = self._counter_by("request_success", "Finished sequences.", "finished_reason")
        self.http = self._counter_by(
            "http_requests", "Answered HTTP requests.", "path", "status", alias=False
        )
        self.rejections = self._counter_by("admission_rejections", "Requests refused on arrival.", "reason")
        self.step_tokens = self._histogram("iteration_tokens_total", "Tokens per step.", STEP_TOKEN_BOUNDS)
        self.step_seconds = self._histogram("step_seconds", "Duration of a step.", ITL_BOUNDS, alias=False)
        tokens = REQUEST_TOKEN_BOUNDS
        self.request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens per request.", tokens)
        self.request_generation = self._histogram("request_generation_tokens", "Tokens per sequence.", tokens)
        self.request_max_generation = self._histogram(
            "request_max_num_generation_tokens", "Longest sequence per request.", tokens
        )
        self.params_n = self._histogram("request_params_n", "Sequences asked for.", N_BOUNDS)
        self.params_max_tokens = self._histogram(
            "request_params_max_tokens", "Answer limit asked for.", tokens
        )
        self.ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BOUNDS)
        self.itl = self._histogram("inter_token_latency_seconds", "Time between tokens.", ITL_BOUNDS)
        self.tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between tokens of a request.", ITL_BOUNDS
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", LATENCY_BOUNDS)
        self.decode = self._histogram("request_decode_time_seconds", "First to last token.", LATENCY_BOUNDS)
        self.startup = self._gauge("startup_seconds", "Time until ready.", alias=False)
        self.cache_config = self._gauge_by("cache_config_info", "Page pool.", "block_size", "num_gpu_blocks")
        self.build = self._gauge_by("build_info", "Version.", "version", alias=False)
        self._last = EngineStats(**dict.fromkeys(EngineStats.__struct_fields__, 0))

    def _family(self, name: str, kind: str, help: str, labels: tuple[str, ...], alias: bool) -> Family:
        family = Family(name, kind, help, label_names=labels, alias=alias)
        self.families.append(family)
        return family

    def _gauge(self, name: str, help: str, *, alias: bool = True) -> Value:
        return self._family(name, "gauge", help, (), alias).value()

    def _gauge_by(self, name: str, help: str, *labels: str, alias: bool = True) -> Family:
        return self._family(name, "gauge", help, labels, alias)

    def _counter(self, name: str, help: str, *, alias: bool = True) -> Value:
        return self._family(name, "counter", help, (), alias).value()

    def _counter_by(self, name: str, help: str, *labels: str, alias: bool = True) -> Family:
        return self._family(name, "counter", help, labels, alias)

    def _histogram(self, name: str, help: str, bounds: tuple[float, ...], *, alias: bool = True) -> Histogram:
        family = Family(name, "histogram", help, bounds=bounds, alias=alias)
        self.families.append(family)
        return family.histogram()

    def ready(self, ready: Ready, seconds: float, version: str) -> None:
        self.startup.set(seconds)
        self.cache_config.value(str(ready.block_size), str(ready.num_blocks)).set(1)
        self.build.value(version).set(1)

    def step(self, step: StepOutput) -> None:
        """Take over one step's gauges and the growth of its cumulative counters."""
        stats, last = step.stats, self._last
        self._last = stats
        self.running.set(stats.num_running)
        self.waiting.set(stats.num_waiting)
        self._waiting_for_capacity.set(stats.num_waiting)
        blocks = max(stats.num_blocks, 1)
        used = stats.num_blocks - stats.num_free_blocks
        self.kv_usage.set(used / blocks)
        self.kv_cached.set(stats.num_cached_blocks / blocks)
        self.prefix_queries.add(stats.prefix_cache_queries - last.prefix_cache_queries)
        self.prefix_hits.add(stats.prefix_cache_hits - last.prefix_cache_hits)
        self.preemptions.add(stats.num_preemptions - last.num_preemptions)
        if step.step_tokens:
            self.step_tokens.observe(step.step_tokens)
            self.step_seconds.observe(step.step_seconds)

    def page(self, openmetrics: bool) -> bytes:
        return render(self.families, self.labels, self._aliases, openmetrics)
