"""Traces of the engine's steps, asked for over HTTP."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.process import Process, server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[Process]:
    flags = ("--device", "cpu", "--max-model-len", "1k", "--profiler-dir", str(folder))
    with server("model", *flags) as process:
        yield process.ready()


def post(process: Process, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(process.url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def generate(process: Process, max_tokens: int) -> None:
    status, _ = post(process, "/v1/completions", {"prompt": "a b c", "max_tokens": max_tokens})
    assert status == 200


def events(file: Path) -> list[str]:
    with gzip.open(file) as stream:
        return [event.get("name", "") for event in json.load(stream)["traceEvents"]]


def test_start_generate_stop(demo: Process, folder: Path) -> None:
    assert post(demo, "/stop_profile")[0] == 409
    assert post(demo, "/start_profile", {"prefix": "one"}) == (200, {"file": "one-rank0.json.gz"})
    assert post(demo, "/start_profile")[0] == 409
    generate(demo, 3)
    assert post(demo, "/stop_profile") == (200, {"files": ["one-rank0.json.gz"]})
    assert any("mmx::" in name for name in events(folder / "one-rank0.json.gz"))


def test_it_ends_by_itself_after_its_steps(demo: Process, folder: Path) -> None:
    assert post(demo, "/start_profile", {"prefix": "two", "num_steps": 2})[0] == 200
    generate(demo, 4)
    assert post(demo, "/stop_profile")[0] == 409
    assert events(folder / "two-rank0.json.gz")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"prefix": "../x"}, "prefix"),
        ({"ranks": [1]}, "ranks"),
        ({"depth": 1}, "depth"),
    ],
)
def test_what_is_wrong_is_named(demo: Process, body: dict[str, Any], param: str) -> None:
    status, answer = post(demo, "/start_profile", body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_without_a_folder_there_is_no_profile() -> None:
    with server("null?vocab_size=4096") as process:
        process.ready()
        status, answer = post(process, "/start_profile")
        assert (status, answer["error"]["code"]) == (404, "profiler_disabled")


def test_an_engine_without_profiler_says_so(folder: Path) -> None:
    with server("null?vocab_size=4096", "--profiler-dir", str(folder)) as process:
        process.ready()
        status, answer = post(process, "/start_profile")
        assert status == 409
        assert answer["error"]["message"] == "this engine can not be profiled"
