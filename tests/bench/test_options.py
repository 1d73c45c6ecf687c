"""The command line: spellings of the guides, what is refused and with which words."""

from __future__ import annotations

import math

import pytest

from bench.helpers import options
from mmx.bench.__main__ import main


def test_command_of_the_tensorrt_guide() -> None:
    o = options(*"""--model MiniMaxAI/MiniMax-M3 --backend openai --dataset-name random
        --random-input-len 1024 --random-output-len 1024 --random-prefix-len 0 --random-ids
        --num-prompts 40 --max-concurrency 8
        --ignore-eos --tokenize-on-client --percentile-metrics ttft,tpot,itl,e2el --trust-remote-code
        --no-test-input --save-result --result-dir out --result-filename a.json""".split())  # fmt: skip
    assert (o.random_input_len, o.num_prompts, o.max_concurrency, o.random_ids) == (1024, 40, 8, True)
    assert (o.test_input, o.ignore_eos, o.tokenize_on_client, o.path) == (
        "none",
        True,
        True,
        "/v1/completions",
    )


def test_command_of_the_ascend_guide() -> None:
    """Its flags are cut short, as its client allows."""
    o = options(*"""--model /models/m2 --dataset-name random --random-input 200 --num-prompt 200
        --request-rate 1 --save-result --result-dir ./""".split())  # fmt: skip
    assert (o.random_input_len, o.num_prompts, o.request_rate) == (200, 200, 1.0)


def test_spellings() -> None:
    assert options("--max_concurrency=3").max_concurrency == 3
    assert options("--input-len", "7", "--output-len", "9").random_output_len == 9
    assert math.isinf(options("--request-rate", "inf").request_rate)
    assert options("--no-stream").stream is False
    assert options("--metric-percentiles", "25,99.9").printed_percentiles == (25, 99.9)
    assert options("--metric-percentiles", "25,99.9").stored_percentiles == (25, 50, 90, 95, 99, 99.9)
    assert options("--host", "h", "--port", "1").url == "http://h:1"
    assert options("--base-url", "http://x/").url == "http://x"
    assert options("--extra-body", '{"a": 1}').extra_body == {"a": 1}
    assert options("--output-style", "trt").output_style == "trtllm"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max-concurency 3", "unknown flag '--max-concurency'; did you mean --max-concurrency?"),
        ("--backend tgi", "--backend: invalid choice: 'tgi'"),
        ("--num-prompts 0", "--num-prompts: expected a whole number from 1, got 0"),
        ("--request-rate 0", "--request-rate: expected a number above 0, got 0"),
        ("--backend openai-chat --tokenize-on-client", "--tokenize-on-client: chat backends take no ids"),
        ("--dataset-name custom", "--dataset-path: custom needs a file"),
        ("--dataset-path x", "--dataset-path: random makes its prompts itself"),
        ("--dataset-name sharegpt --dataset-path x --random-ids", "--random-ids: only for"),
        ("--goodput itl:3", "--goodput: expected ttft:MS, tpot:MS or e2el:MS, got 'itl:3'"),
        ("--percentile-metrics ttft,foo", "expected some of ttft,tpot,itl,e2el, got 'foo'"),
        ("--random-range-ratio 1.5", "--random-range-ratio: expected a number from 0 to 1"),
        ("--ramp-up-strategy linear", "--ramp-up-strategy, -start-rps and -end-rps go together"),
        ("--dataset-name prefix_repetition --num-prompts 3", "expected at least --prefix-repetition-num"),
        ("--base-url localhost:8000", "--base-url: expected http://HOST:PORT, got 'localhost:8000'"),
        ("--header nothing", "--header: expected NAME=VALUE, got 'nothing'"),
        ("--extra-body [1]", "--extra-body: expected a JSON object, got '[1]'"),
    ],
)
def test_wrong_usage(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options(*flags.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_without_a_command_mean_serve(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that named another client's module runs with only the module's name changed."""
    with pytest.raises(SystemExit):
        main(["--num-prompts", "0"])
    assert "mmx bench serve: error: argument --num-prompts" in capsys.readouterr().err


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "sweep [flags]" in capsys.readouterr().out
    assert main(["serv"]) == 2
    assert "unknown command 'serv'; expected serve or sweep" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    assert "--prefix-repetition-num-prefixes" in capsys.readouterr().out
