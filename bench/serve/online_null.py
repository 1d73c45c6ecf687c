"""What the server itself costs: requests/s and streamed tokens/s in front of an engine without a model.

    python bench/serve/online_null.py [--connections 64] [--streams 256] [--tokens 200] [--json FILE]

The load generator is a process of its own that counts events without parsing JSON; server, engine and
generator share the machine's cores. Gaps are the times between events of one stream as the client sees
them; the engine adds ``--step-ms`` to each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvloop

ROOT = Path(__file__).resolve().parents[2]
SERVE = "import sys; from mmx.server.__main__ import main; sys.exit(main(sys.argv[2:], runner=sys.argv[1]))"
START_SECONDS = 60.0


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends the same request again and again."""

    def __init__(self, request: bytes, on_answer: Callable[[Connection], None]) -> None:
        self._request = request
        self._on_answer = on_answer
        self._transport: asyncio.WriteTransport | None = None
        self._tail = b""
        self.num_events = 0
        self.last_event = 0.0
        self.first_event = 0.0
        self.sent_at = 0.0
        self.gaps: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self) -> None:
        assert self._transport is not None
        self.num_events = 0
        self._tail = b""
        self.sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self._tail + data
        events = data.count(b"data: {", max(len(self._tail) - 6, 0))
        if events:
            if self.num_events:
                self.gaps.append(now - self.last_event)
            else:
                self.first_event = now
            self.num_events += events
            self.last_event = now
        # Both kinds of answers end in these bytes: a chunked body, or a JSON object with timings last.
        self._tail = data[-8:]
        if self._tail.endswith(b"\r\n0\r\n\r\n") or (not self.num_events and self._tail.endswith(b"}}")):
            self._on_answer(self)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def http_request(host: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def load(host: str, port: int, body: dict[str, Any], num_connections: int, num_requests: int) -> Any:
    """Send ``num_requests`` over ``num_connections`` connections, each one request at a time."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    left, answered, events = num_requests, 0, 0
    ttft: list[float] = []

    def on_answer(connection: Connection) -> None:
        nonlocal left, answered, events
        answered += 1
        events += connection.num_events
        if connection.num_events:
            ttft.append(connection.first_event - connection.sent_at)
        if left > 0:
            left -= 1
            connection.send()
        elif answered == num_requests:
            done.set()

    request = http_request(f"{host}:{port}", body)
    connections: list[Connection] = []
    for _ in range(num_connections):
        _, connection = await loop.create_connection(lambda: Connection(request, on_answer), host, port)
        connections.append(connection)
    started = time.perf_counter()
    for connection in connections:
        left -= 1
        connection.send()
    await done.wait()
    seconds = time.perf_counter() - started
    for connection in connections:
        connection.close()
    gaps = sorted(gap for connection in connections for gap in connection.gaps)
    ttft.sort()

    def at(values: list[float], share: float) -> float:
        return round(1000 * values[min(int(share * len(values)), len(values) - 1)], 3) if values else 0.0

    return {
        "seconds": round(seconds, 3),
        "requests_per_s": round(num_requests / seconds, 1),
        "events_per_s": round(events / seconds, 1),
        "ttft_p50_ms": at(ttft, 0.5),
        "gap_p50_ms": at(gaps, 0.5),
        "gap_p99_ms": at(gaps, 0.99),
    }


class NullServer:
    """The server with the null runner, on a free port."""

    def __init__(self, step_ms: float, max_num_seqs: int) -> None:
        runner = f"null?step_seconds={step_ms / 1000}"
        flags = ["--port", "0", "--max-num-seqs", str(max_num_seqs), "--log-stats-interval", "0"]
        flags += ["--max-num-batched-tokens", "65536"]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        command = [sys.executable, "-c", SERVE, runner, *flags]
        self.child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self.port = self._wait_ready()

    def _wait_ready(self) -> int:
        assert self.child.stderr is not None
        port = 0
        deadline = time.monotonic() + START_SECONDS
        for line in self.child.stderr:
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
            if "Application startup complete" in line:
                threading.Thread(target=self.child.stderr.read, daemon=True).start()
                return port
            if time.monotonic() > deadline:
                break
        raise RuntimeError("the server did not become ready")

    def cpu_seconds(self) -> float:
        """CPU time of the server process, without the engine's."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def close(self) -> None:
        self.child.terminate()
        self.child.wait(20)


def generate(port: int, body: dict[str, Any], num_connections: int, num_requests: int) -> dict[str, Any]:
    """Run the load in another process."""
    job = json.dumps([port, body, num_connections, num_requests])
    command = [sys.executable, __file__, "--load", job]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        port, body, num_connections, num_requests = json.loads(args.load)
        print(json.dumps(uvloop.run(load("127.0.0.1", port, body, num_connections, num_requests))))
        return

    chat = {"messages": [{"role": "user", "content": "Hello."}], "ignore_eos": True, "temperature": 0}
    server = NullServer(args.step_ms, max(args.streams, args.connections))
    try:
        generate(server.port, {**chat, "max_tokens": 1}, 8, 200)
        rss = server.rss_mib()
        cpu = server.cpu_seconds()
        whole = generate(server.port, {**chat, "max_tokens": 1}, args.connections, args.requests)
        whole["server_cpu_ms_per_request"] = round(1000 * (server.cpu_seconds() - cpu) / args.requests, 3)
        cpu = server.cpu_seconds()
        body = {**chat, "max_tokens": args.tokens, "stream": True}
        stream = generate(server.port, body, args.streams, args.streams)
        stream["tokens_per_s"] = round(args.streams * args.tokens / stream["seconds"], 1)
        spent = server.cpu_seconds() - cpu
        stream["server_cpu_us_per_token"] = round(1e6 * spent / (args.streams * args.tokens), 2)
        growth = server.rss_mib() - rss
    finally:
        server.close()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{' '.join(sys.argv)}   {machine}")
    print(
        f"whole   connections={args.connections} max_tokens=1   {whole['requests_per_s']} requests/s   "
        f"{whole['server_cpu_ms_per_request']} ms CPU/request"
    )
    print(
        f"stream  streams={args.streams} tokens={args.tokens} interval=1   "
        f"{stream['tokens_per_s']} tokens/s   {stream['server_cpu_us_per_token']} us CPU/token   "
        f"gap p50 {stream['gap_p50_ms']} ms p99 {stream['gap_p99_ms']} ms   "
        f"first event p50 {stream['ttft_p50_ms']} ms   memory {growth:+.1f} MiB"
    )
    if args.json:
        result = {"machine": machine, "whole": whole, "stream": stream, "memory_growth_mib": growth}
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
