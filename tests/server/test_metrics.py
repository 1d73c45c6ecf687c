"""/metrics as Prometheus reads it: names, types, buckets, and totals that equal what clients saw."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from mmx.server.metric_set import Metrics
from mmx.server.metrics import Family
from server.helpers import ScriptedEngine, Server, serving

GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "cache_config_info",
}
COUNTERS = {
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "prompt_tokens_cached",
    "prompt_tokens_by_source",
    "generation_tokens",
    "request_success",
    "admission_rejections",
}
HISTOGRAMS = {
    "iteration_tokens_total",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_params_n",
    "request_params_max_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_decode_time_seconds",
}
OWN_ONLY = {"kv_cache_cached_perc", "reasoning_tokens", "tool_calls", "http_requests", "step_seconds"}
OWN_ONLY |= {"startup_seconds", "build_info"}


async def page(server: Server, accept: str = "") -> Any:
    async with server.http.get("/metrics", headers={"Accept": accept}) as response:
        assert response.status == 200
        text = await response.text()
    parser = openmetrics_parser if accept else text_parser
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def total(families: Any, name: str, sample: str | None = None, **labels: str) -> float:
    return sum(
        s.value
        for s in families[name].samples
        if s.name == (sample or s.name) and labels.items() <= s.labels.items()
    )


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_names_types_and_labels(accept: str) -> None:
    async with serving() as server:
        await server.chat()
        families = await page(server, accept)
        shared = GAUGES | COUNTERS | HISTOGRAMS
        for prefix, names in (("mmx_", shared | OWN_ONLY), ("vllm:", shared)):
            found = {name.removeprefix(prefix) for name in families if name.startswith(prefix)}
            assert found == names
        for kind, names in (("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS)):
            for name in names:
                assert families[f"vllm:{name}"].type == kind
        for family in families.values():
            for sample in family.samples:
                assert sample.labels["model_name"] == "mmx-demo"
                assert sample.labels["engine"] == "0"


async def test_totals_equal_what_clients_counted() -> None:
    engine = ScriptedEngine("<mm:think>Hm.</mm:think>one two three")
    async with serving(engine) as server:
        answers = [(await server.chat(n=2, temperature=1))[1] for _ in range(3)]
        stream = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        stream["stream_options"] = {"include_usage": True}
        async with server.http.post("/v1/chat/completions", json=stream) as response:
            await response.read()
        await server.chat(temperature=9)
        usage = [answer["usage"] for answer in answers]
        families = await page(server)
        generated = sum(u["completion_tokens"] for u in usage)
        per_choice = generated / 6
        assert (
            total(families, "vllm:generation_tokens", "vllm:generation_tokens_total")
            == generated + per_choice
        )
        prompt = usage[0]["prompt_tokens"]
        assert total(families, "mmx_prompt_tokens", "mmx_prompt_tokens_total") == 7 * prompt
        assert total(families, "mmx_prompt_tokens_cached", "mmx_prompt_tokens_cached_total") == 7 * 64
        source = "mmx_prompt_tokens_by_source"
        assert total(families, source, source + "_total", source="compute") == 7 * (prompt - 64)
        reasoning = usage[0]["completion_tokens_details"]["reasoning_tokens"] / 2
        assert total(families, "mmx_reasoning_tokens", "mmx_reasoning_tokens_total") == 7 * reasoning
        success = "vllm:request_success"
        assert total(families, success, success + "_total", finished_reason="stop") == 7
        http = "mmx_http_requests"
        assert total(families, http, http + "_total", path="/v1/chat/completions", status="200") == 4
        assert total(families, http, http + "_total", path="/v1/chat/completions", status="400") == 1
        ttft = "vllm:time_to_first_token_seconds"
        assert total(families, ttft, ttft + "_count") == 4
        gaps = "vllm:inter_token_latency_seconds"
        assert total(families, gaps, gaps + "_count") == generated + per_choice - 7


async def test_rejections_and_cut_clients_are_counted() -> None:
    engine = ScriptedEngine("x " * 500, step_seconds=0.01, max_num_seqs=1, max_num_queued_reqs=0)
    async with serving(engine) as server:
        task = asyncio.ensure_future(server.chat())
        while engine.num_open < 1:
            await asyncio.sleep(0.005)
        assert (await server.chat())[0] == 429
        task.cancel()
        await server.idle()
        families = await page(server)
        name = "vllm:admission_rejections"
        assert total(families, name, name + "_total", reason="queue_full") == 1
        name = "vllm:request_success"
        assert total(families, name, name + "_total", finished_reason="abort") == 1
        name = "mmx_http_requests"
        assert total(families, name, name + "_total", status="499") == 1


async def test_alias_and_page_can_be_switched_off() -> None:
    async with serving(None, "--metrics-alias", "none") as server:
        assert not any(name.startswith("vllm:") for name in await page(server))
    async with serving(None, "--disable-metrics") as server:
        assert (await server.get("/metrics"))[0] == 404


def test_histogram_buckets_are_cumulative() -> None:
    metrics = Metrics("m", "none")
    metrics.ttft.observe(0.001)
    metrics.ttft.observe(0.0011, times=2)
    metrics.ttft.observe(99999)
    families = {f.name: f for f in text_parser.text_string_to_metric_families(metrics.page(False).decode())}
    samples = families["mmx_time_to_first_token_seconds"].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["0.005"], buckets["2560"], buckets["+Inf"]) == (1, 3, 3, 4)
    values = list(buckets.values())
    assert values == sorted(values)
    (count,) = (s.value for s in samples if s.name.endswith("_count"))
    assert count == 4


def test_labels_are_escaped_and_checked() -> None:
    metrics = Metrics('we"ird\\na\nme', "vllm")
    families = list(text_parser.text_string_to_metric_families(metrics.page(False).decode()))
    assert families[0].samples[0].labels["model_name"] == 'we"ird\\na\nme'
    with pytest.raises(ValueError, match="takes labels"):
        Family("x", "counter", "y", label_names=("a",)).value()
