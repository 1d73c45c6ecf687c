"""A whole run against a server with known times: numbers, printed block and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.helpers import DEMO, FakeServer, Play, chat, completion, ending, event, fake_server, options
from mmx.bench.serve import BenchError, run

# TTFT 100, gaps 20 20 20; then TTFT 50, gaps 10 and 30 with two tokens after the longer one.
FIRST = Play(
    [(0.100, completion("a")), (0.120, completion("b")), (0.140, completion("c")),
     (0.160, completion("d", "length") + ending(16, 4, 0))]
)  # fmt: skip
SECOND = Play(
    [(0.050, completion("a")), (0.060, completion("b")), (0.090, completion("hello", "length")),
     (0.100, ending(16, 4, 8))]
)  # fmt: skip
FLAGS = ("--tokenizer", str(DEMO), "--num-prompts", "2", "--input-len", "16", "--output-len", "4",
         "--max-concurrency", "1", "--no-test-input", "--disable-tqdm")  # fmt: skip

VLLM = """\
Starting main benchmark run...
Traffic request rate: inf
Burstiness factor: 1 (Poisson process)
Maximum request concurrency: 1
============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         0         
Maximum request concurrency:             1         
Benchmark duration (s):                  0.26      
Total input tokens:                      32        
Total generated tokens:                  8         
Request throughput (req/s):              7.69      
Request goodput (req/s):                 3.85      
Output token throughput (tok/s):         30.77     
Peak output token throughput (tok/s):    8.00      
Peak concurrent requests:                1.00      
Total token throughput (tok/s):          153.85    
---------------Time to First Token----------------
Mean TTFT (ms):                          75.00     
Median TTFT (ms):                        75.00     
P99 TTFT (ms):                           99.50     
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          16.67     
Median TPOT (ms):                        16.67     
P99 TPOT (ms):                           19.93     
---------------Inter-token Latency----------------
Mean ITL (ms):                           20.00     
Median ITL (ms):                         20.00     
P99 ITL (ms):                            29.60     
----------------End-to-end Latency----------------
Mean E2EL (ms):                          125.00    
Median E2EL (ms):                        125.00    
P99 E2EL (ms):                           159.30    
==================================================
"""  # noqa: W291
TRTLLM_HEAD = """\
============ Serving Benchmark Result ============
Total requests:                          2         
Successful requests:                     2         
Failed requests:                         0         
Benchmark duration (s):                  0.26      
Total input tokens:                      32        
Total generated tokens:                  8         
Request throughput (req/s):              7.69      
Output token throughput (tok/s):         30.77     
Total Token throughput (tok/s):          153.85    
User throughput (tok/s):                 34.72     
---------------Time to First Token----------------
"""  # noqa: W291
SGLANG = """\
============ Serving Benchmark Result ============
Backend:                                 openai    
Traffic request rate:                    inf       
Max request concurrency:                 1         
Successful requests:                     2         
Benchmark duration (s):                  0.26      
Total input tokens:                      32        
Total generated tokens:                  8         
Request throughput (req/s):              7.69      
Output token throughput (tok/s):         30.77     
Total token throughput (tok/s):          153.85    
Concurrency:                             0.96      
---------------Inter-token Latency----------------
Mean ITL (ms):                           20.00     
Median ITL (ms):                         20.00     
P90 ITL (ms):                            26.00     
P95 ITL (ms):                            28.00     
P99 ITL (ms):                            29.60     
Max ITL (ms):                            30.00     
==================================================
"""  # noqa: W291


async def bench(server: FakeServer, *flags: str) -> dict[str, Any]:
    argv = ["--base-url", server.url, *FLAGS, *flags]
    return await run(options(*argv), argv, server.clock)


async def test_vllm_block(capsys: pytest.CaptureFixture[str]) -> None:
    async with fake_server(FIRST, SECOND) as server:
        await bench(server, "--goodput", "ttft:60", "tpot:20")
    assert capsys.readouterr().out == VLLM


async def test_trtllm_block(capsys: pytest.CaptureFixture[str]) -> None:
    async with fake_server(FIRST, SECOND) as server:
        await bench(server, "--output-style", "trt", "--percentile-metrics", "ttft")
    out = capsys.readouterr().out
    assert TRTLLM_HEAD in out
    assert "TPOT" not in out


async def test_sglang_block(capsys: pytest.CaptureFixture[str]) -> None:
    async with fake_server(FIRST, SECOND) as server:
        await bench(server, "--output-style", "sglang", "--percentile-metrics", "itl")
    assert SGLANG in capsys.readouterr().out


async def test_all_prints_gaps_per_token(capsys: pytest.CaptureFixture[str]) -> None:
    async with fake_server(FIRST, SECOND) as server:
        await bench(server, "--output-style", "all", "--percentile-metrics", "itl")
    out = capsys.readouterr().out
    assert "Inter-token Latency per Token-----------\nMean ITL/token (ms): " in out
    assert "Cached share of input (%):               25.00 " in out


async def test_numbers_and_keys(tmp_path: Path) -> None:
    async with fake_server(FIRST, SECOND) as server:
        flags = ("--save-detailed", "--result-dir", str(tmp_path / "new"), "--result-filename", "r.json")
        secret = ("--api-key", "s3cret", "--header", "X-A=s3cret", "--metadata", "tp=4")
        returned = await bench(server, *flags, *secret)
        assert server.headers[0]["Authorization"] == "Bearer s3cret"
        assert server.headers[0]["X-A"] == "s3cret"
    text = (tmp_path / "new" / "r.json").read_text()
    assert "s3cret" not in text
    found = json.loads(text)
    assert found == {**returned, **{name: found[name] for name in found.keys() - returned.keys()}}
    expected = {
        "backend": "openai", "endpoint_type": "openai", "model_id": "fake-model", "tokenizer_id": str(DEMO),
        "label": None, "num_prompts": 2, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 1,
        "tp": "4", "completed": 2, "failed": 0, "total_input_tokens": 32, "total_output_tokens": 8,
        "request_goodput": None, "max_output_tokens_per_s": 8, "max_concurrent_requests": 1,
        "input_lens": [16, 16], "output_lens": [4, 4], "generated_texts": ["abcd", "abhello"],
        "errors": ["", ""],
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    close = {
        "duration": 0.26, "request_throughput": 2 / 0.26, "output_throughput": 8 / 0.26,
        "total_token_throughput": 40 / 0.26, "user_throughput": (4 / 0.16 + 4 / 0.09) / 2,
        "mean_ttft_ms": 75, "median_ttft_ms": 75, "std_ttft_ms": 25, "p50_ttft_ms": 75, "p90_ttft_ms": 95,
        "p95_ttft_ms": 97.5, "p99_ttft_ms": 99.5, "mean_tpot_ms": (20 + 40 / 3) / 2, "mean_itl_ms": 20,
        "p99_itl_ms": 29.6, "mean_e2el_ms": 125, "ttfts": [0.1, 0.05], "latencies": [0.16, 0.09],
        "e2els": [0.16, 0.09], "start_times": [0, 0.16], "queue_times": [0, 0.16],
    }  # fmt: skip
    assert {name: found[name] for name in close} == {name: pytest.approx(v) for name, v in close.items()}
    assert found["itls"] == [pytest.approx([0.02] * 3), pytest.approx([0.01, 0.03])]
    mmx = found["mmx"]
    assert (mmx["schema"], mmx["server"], mmx["cached_tokens"], mmx["cold"], mmx["test_request"]) == (
        1, {"version": "1.2.3"}, 8, False, "none"
    )  # fmt: skip


async def test_gap_of_several_tokens_counts_for_each() -> None:
    """With counts from the server; the raw value keeps two gaps."""
    plays = [
        (0.10, completion("a", usage={"completion_tokens": 1})),
        (0.14, completion("bcde", usage={"completion_tokens": 5})),
        (0.16, completion("f", "length", usage={"completion_tokens": 6}) + ending(16, 6)),
    ]
    async with fake_server(Play(plays)) as server:
        found = await bench(server, "--num-prompts", "1", "--backend", "vllm")
        assert server.bodies[0]["stream_options"]["continuous_usage_stats"] is True
    assert found["mean_itl_ms"] == pytest.approx(30)
    assert found["mean_itl_per_token_ms"] == pytest.approx((4 * 10 + 20) / 5)
    assert found["p99_itl_per_token_ms"] == pytest.approx(10 + 10 * 0.96)


async def test_chat_times_start_with_the_first_token() -> None:
    """A role, an empty line and a comment carry none; thoughts and calls do."""
    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    plays = [
        (0.01, chat(role="assistant", content="")), (0.02, b"\n: keep-alive\n\n"),
        (0.10, chat(role="assistant", reasoning="r", reasoning_content="r")), (0.15, chat(content="c")),
        (0.18, chat(tool_calls=[call])), (0.30, chat("tool_calls") + ending(20, 4)),
    ]  # fmt: skip
    async with fake_server(Play(plays)) as server:
        found = await bench(server, "--num-prompts", "1", "--backend", "openai-chat")
        (body,) = server.bodies
    assert found["mean_ttft_ms"] == pytest.approx(100)
    assert found["mean_e2el_ms"] == pytest.approx(180)
    assert found["mean_tpot_ms"] == pytest.approx(80 / 3)
    assert found["total_output_tokens"] == 4
    assert body["messages"][0]["role"] == "user"
    assert body["max_completion_tokens"] == 4


ANTHROPIC = [
    (0.01, {"type": "message_start", "message": {"usage": {
        "input_tokens": 5, "cache_read_input_tokens": 16, "output_tokens": 0}}}),
    (0.02, {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}),
    (0.03, {"type": "ping"}),
    (0.10, {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "a"}}),
    (0.14, {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "b"}}),
    (0.20, {"type": "content_block_start", "index": 2, "content_block": {
        "type": "tool_use", "name": "f", "input": {}}}),
    (0.22, {"type": "content_block_delta", "index": 2, "delta": {
        "type": "input_json_delta", "partial_json": "{}"}}),
    (0.30, {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 4}}),
    (0.31, {"type": "message_stop"}),
]  # fmt: skip


async def test_anthropic() -> None:
    play = Play([(at, b"event: x\n" + event(payload)) for at, payload in ANTHROPIC])
    async with fake_server(play) as server:
        found = await bench(server, "--num-prompts", "1", "--backend", "anthropic", "--api-key", "k")
        assert server.bodies[0]["max_tokens"] == 4
        assert "stream_options" not in server.bodies[0]
        assert (server.headers[0]["x-api-key"], server.headers[0]["anthropic-version"]) == ("k", "2023-06-01")
    assert found["completed"] == 1
    assert (found["mean_ttft_ms"], found["mean_e2el_ms"]) == pytest.approx((100, 220))
    assert found["total_output_tokens"] == 4
    assert found["mmx"]["cached_tokens"] == 16


async def test_anthropic_in_one_piece() -> None:
    body = {"type": "message", "content": [{"type": "text", "text": "abc"}],
            "usage": {"input_tokens": 16, "output_tokens": 3}}  # fmt: skip
    async with fake_server(Play([(0.2, json.dumps(body).encode())])) as server:
        found = await bench(server, "--num-prompts", "1", "--no-stream", "--backend", "anthropic")
    assert (found["mean_e2el_ms"], found["total_output_tokens"]) == (pytest.approx(200), 3)


async def test_failures_do_not_enter_the_numbers() -> None:
    busy = Play([(0.5, b'{"error":{"message":"full"}}')], status=429)
    cut = Play([(0.1, completion("a"))])
    broken = Play([(0.1, completion("a")), (0.2, b'data: {"error":{"message":"gone"}}\n\ndata: [DONE]\n\n')])
    async with fake_server(busy, FIRST, cut, broken) as server:
        found = await bench(server, "--num-prompts", "4", "--output-style", "vllm")
    assert (found["completed"], found["failed"]) == (1, 3)
    assert found["mean_ttft_ms"] == pytest.approx(100)
    assert found["duration"] == pytest.approx(0.5 + 0.16 + 0.1 + 0.2)


async def test_answer_in_one_piece() -> None:
    body = {"choices": [{"text": "abc", "finish_reason": "length"}], "usage": {"completion_tokens": 3}}
    async with fake_server(Play([(0.2, json.dumps(body).encode())])) as server:
        found = await bench(server, "--num-prompts", "1", "--no-stream")
    assert found["mean_ttft_ms"] == found["mean_e2el_ms"] == pytest.approx(200)
    assert found["mean_tpot_ms"] is None
    assert found["total_output_tokens"] == 3


async def test_test_request_has_another_prompt() -> None:
    async with fake_server(FIRST, FIRST) as server:
        await bench(server, "--num-prompts", "1", "--test-input", "other")
        test, measured = server.bodies
        assert test["prompt"] != measured["prompt"]
    async with fake_server(FIRST, FIRST) as server:
        await bench(server, "--num-prompts", "1", "--test-input", "same")
        assert server.bodies[0] == server.bodies[1]


async def test_refused_test_request_ends_the_run() -> None:
    async with fake_server(Play([(0.0, b"no such model")], status=404)) as server:
        with pytest.raises(BenchError, match="status 404: no such model"):
            await bench(server, "--test-input", "other")


async def test_server_without_a_model_list() -> None:
    """A refusal ends the wait at once."""
    async with fake_server() as server:
        server.url += "/elsewhere"
        with pytest.raises(BenchError, match="/elsewhere/v1/models names no model: status 404; give --model"):
            await bench(server)
