"""1,000 clients cut at random points leave nothing behind: no sequence, no page, no task, no connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
import urllib.request
from pathlib import Path

from server.process import Process, server

NUM_CLIENTS, AT_ONCE = 1000, 50
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]


def body(path: str, rng: random.Random) -> bytes:
    fields: dict[str, object] = {"model": "mmx-demo", "stream": rng.random() < 0.7}
    text = "a " * rng.randrange(1, 400)
    if path == "/v1/completions":
        fields |= {"prompt": text, "max_tokens": 400}
    elif path == "/v1/responses":
        fields |= {"input": text, "max_output_tokens": 400}
    else:
        fields |= {"messages": [{"role": "user", "content": text}], "max_tokens": 400}
    return json.dumps(fields).encode()


async def cut_client(host: str, port: int, rng: random.Random) -> None:
    """Sends a request, or a part of one, reads for a moment, and is gone."""
    path = rng.choice(PATHS)
    content = body(path, rng)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    sent = len(request) if rng.random() < 0.8 else rng.randrange(len(request))
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request[:sent])
    await writer.drain()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(rng.randrange(1, 4000)), rng.random() * 0.05)
    if rng.random() < 0.5:
        writer.transport.abort()
    writer.close()


async def cut_all(host: str, port: int) -> None:
    rng = random.Random(0)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await cut_client(host, port, rng)

    await asyncio.gather(*(one() for _ in range(NUM_CLIENTS)))


def gauges(process: Process) -> dict[str, float]:
    with urllib.request.urlopen(f"{process.url}/metrics", timeout=10) as response:
        text = response.read().decode()
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return {name: float(re.search(rf"^mmx_{name}(?:{{[^}}]*}})? (\S+)", text, re.M)[1]) for name in names}


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.child.pid}/fd").iterdir()))


def test_cut_clients_leave_nothing_behind() -> None:
    with server("null?step_seconds=0.002", "--max-num-seqs", "64") as process:
        process.ready()
        host, port = process.url.removeprefix("http://").split(":")
        files, idle = open_files(process), gauges(process)
        assert idle == dict.fromkeys(idle, 0.0)
        asyncio.run(cut_all(host, int(port)))
        deadline = time.monotonic() + 20
        left, found = open_files(process), gauges(process)
        while (found != idle or left > files) and time.monotonic() < deadline:
            time.sleep(0.2)
            left, found = open_files(process), gauges(process)
        assert found == idle
        assert left <= files
        assert process.get("/health")[0] == 200
        assert not [line for line in process.log if "Traceback" in line or "never retrieved" in line]
