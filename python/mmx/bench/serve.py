"""``mmx bench serve``: prepare prompts, load the server, report."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec

from mmx import env
from mmx.bench.client import Client, Clock
from mmx.bench.dataset import PromptMaker, Sample, prefix_repetition_samples, random_samples
from mmx.bench.dataset_files import custom_samples, sharegpt_samples
from mmx.bench.load import run_load
from mmx.bench.measures import measure
from mmx.bench.options import Options, parse
from mmx.bench.report import block
from mmx.bench.result_file import detail, result, result_path, save
from mmx.model_path import demo_model_path, hub_snapshots
from mmx.tokenizer import Tokenizer

RETRY_SECONDS = 1.0
DEMO_NAME = "mmx-demo"  # under which a server without a model argument answers


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class BenchError(Exception):
    """The run can not go on; the text says why."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 1 if the run could not be made or no request succeeded, 2 for wrong usage."""
    options = parse(argv)
    try:
        found = asyncio.run(run(options, argv))
    except (BenchError, ValueError, OSError) as error:
        print(f"mmx bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if found["completed"] else 1


async def run(
    options: Options, argv: Sequence[str], clock: Clock = time.perf_counter, round_idx: int = 0
) -> dict[str, Any]:
    """Make a run, print its block, write its file; returns the result without detail. ``round_idx``: which
    repeat of a sweep this is."""
    async with open_session(options) as http:
        model = options.served_model_name or options.model or await _first_model(http, options)
        folder = tokenizer_folder(options, model)
        tokenizer = Tokenizer(folder) if folder else None
        samples = make_samples(options, tokenizer)
        client = Client(http, options, model, clock)
        await _test_request(client, options, _test_sample(options, samples, tokenizer))
        for i in range(options.num_warmups):
            await client.send(samples[i % len(samples)], f"{options.request_id_prefix}warmup-{i}")
        _announce(options)
        answers = await run_load(client, options, samples)
        server = await _server_facts(http, options)
    input_lens = [sample.input_len for sample in samples]
    measures = measure(answers, input_lens, tokenizer, options.goodput)
    for error in sorted({answer.error for answer in answers if answer.error})[:3]:
        print(f"mmx bench: a request failed: {error}", file=sys.stderr)
    sys.stdout.write(block(options, measures))
    now = datetime.now()
    found = result(
        options,
        measures,
        model=model,
        tokenizer=str(folder) if folder else None,
        now=now,
        argv=argv,
        server=server,
        num_prompts=len(samples),
        round_idx=round_idx,
    )
    if options.save_result or options.save_detailed or options.append_result:
        detailed = options.save_detailed or options.output_style == "trtllm"
        more = detail(answers, input_lens, measures) if detailed else {}
        save(result_path(options, model, now), {**found, **more}, append=options.append_result)
    return found


def open_session(options: Options) -> aiohttp.ClientSession:
    """Connections without a limit of their own: the flags decide how many requests are in flight."""
    key = options.api_key or env.environment().get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if options.backend == "anthropic":
        headers = {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=60),
        headers={**headers, **dict(options.header)},
        read_bufsize=1 << 20,
    )


def tokenizer_folder(options: Options, model: str) -> Path | None:
    """--tokenizer, else --model, else the model's name: a folder, or a name whose files an earlier
    download left in the cache of the Hugging Face hub, or the embedded demo's. ValueError if --tokenizer is
    none of these."""
    for name in (options.tokenizer, options.model, model):
        if name is None:
            continue
        embedded = [demo_model_path()] if name == DEMO_NAME else []
        for folder in (Path(name).expanduser(), *hub_snapshots(name), *embedded):
            if (folder / "tokenizer.json").is_file():
                return folder
        if name == options.tokenizer:
            raise ValueError(
                f"--tokenizer: {name!r} is neither a folder with a tokenizer.json nor in the cache"
            )
    return None


def make_samples(options: Options, tokenizer: Tokenizer | None) -> list[Sample]:
    """The prompts of the data set that the flags name. ValueError if it needs a tokenizer or is empty."""
    rng = Random(options.seed)
    if options.dataset_name == "custom":
        return custom_samples(options, tokenizer)
    if tokenizer is None:
        raise ValueError(f"--tokenizer: {options.dataset_name} needs a checkpoint folder with a tokenizer")
    if options.dataset_name == "sharegpt":
        return sharegpt_samples(options, tokenizer, rng)
    maker = PromptMaker(tokenizer, rng, options.tokenize_on_client)
    make = random_samples if options.dataset_name == "random" else prefix_repetition_samples
    samples = make(options, maker, rng)
    if maker.num_inexact:
        print(f"{maker.num_inexact} prompts miss their length by some tokens", file=sys.stderr)
    return samples


def _test_sample(options: Options, samples: list[Sample], tokenizer: Tokenizer | None) -> Sample:
    """As long as the first prompt but, unless asked for, another: it must not warm the prefix cache."""
    first = samples[0]
    if options.test_input == "same":
        return first
    if tokenizer is None:
        return Sample(prompt="Say hello.", output_len=16)
    maker = PromptMaker(tokenizer, Random(f"test {options.seed}"), options.tokenize_on_client)
    return maker.sample(maker.draw(first.input_len or options.random_input_len), first.output_len or 16)


async def _test_request(client: Client, options: Options, sample: Sample) -> None:
    """Wait until the server answers a request; BenchError when it refuses it or time is up."""
    if options.test_input == "none":
        return
    print("Starting initial single prompt test run...")
    deadline = time.monotonic() + options.ready_check_timeout_sec
    while True:
        answer = await client.send(sample, f"{options.request_id_prefix}test")
        if not answer.error:
            return
        refused = answer.error.startswith("status 4") and not answer.error.startswith("status 429")
        if refused or time.monotonic() >= deadline:
            raise BenchError(f"the test request failed: {answer.error}")
        await asyncio.sleep(RETRY_SECONDS)


def _announce(options: Options) -> None:
    print("Starting main benchmark run...")
    print(f"Traffic request rate: {options.request_rate:g}")
    kind = " (Poisson process)" if options.burstiness == 1 else " (Gamma distribution)"
    print(f"Burstiness factor: {options.burstiness:g}{kind}")
    print(f"Maximum request concurrency: {options.max_concurrency}", flush=True)


async def _first_model(http: aiohttp.ClientSession, options: Options) -> str:
    url = options.url + "/v1/models"
    deadline = time.monotonic() + options.ready_check_timeout_sec
    while True:
        refused = False
        try:
            async with http.get(url) as response:
                body = await response.read()
            if response.status == 200:
                models = msgspec.json.decode(body, type=_Models).data
                if models:
                    return models[0].id
            problem, refused = f"status {response.status}", 400 <= response.status < 500
        except (aiohttp.ClientError, msgspec.MsgspecError) as error:
            problem = str(error)
        if refused or time.monotonic() >= deadline:
            raise BenchError(f"{url} names no model: {problem}; give --model")
        await asyncio.sleep(RETRY_SECONDS)


async def _server_facts(http: aiohttp.ClientSession, options: Options) -> dict[str, Any] | None:
    """What ``/version`` says; None from a server without one."""
    try:
        async with http.get(options.url + "/version") as response:
            body = await response.read()
        facts = msgspec.json.decode(body) if response.status == 200 else None
    except (aiohttp.ClientError, msgspec.DecodeError):
        return None
    return facts if isinstance(facts, dict) else None
