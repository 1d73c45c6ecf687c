"""The demo model behind a real server process."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from server.process import Process, server


@pytest.fixture(scope="module")
def demo() -> Iterator[Process]:
    with server("model", "--device", "cpu", "--dtype", "float32", "--max-model-len", "4k") as process:
        yield process.ready()


@pytest.fixture(scope="module")
def client(demo: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client
