"""What the server itself costs: requests/s and streamed tokens/s in front of an engine without a model.

    python bench/serve/online_null.py [--connections 64] [--streams 256] [--tokens 200] [--json FILE]

The load generator is a compiled program (``http_load.cpp``) that counts events without parsing JSON; server,
engine and generator share the machine's cores. Gaps are the times between events of one stream as the
client sees them; the engine adds ``--step-ms`` to each. Memory is what the requests of the first part, after
2,000 warm ones, left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SERVE = "import sys; from mmx.server.__main__ import main; sys.exit(main(sys.argv[2:], runner=sys.argv[1]))"
START_SECONDS = 60.0


def build_generator(folder: Path) -> Path:
    """``http_load``, compiled: a generator in Python would take the cores from the server it measures."""
    program = folder / "http_load"
    source = ROOT / "bench" / "serve" / "http_load.cpp"
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    return program


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


def generate(
    program: Path, port: int, body: dict[str, Any], num_connections: int, num_requests: int
) -> dict[str, Any]:
    """Run the load in another process."""
    command = [str(program), str(port), str(num_connections), str(num_requests), json.dumps(body)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
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
    args = parser.parse_args()

    chat = {"messages": [{"role": "user", "content": "Hello."}], "ignore_eos": True, "temperature": 0}
    folder = tempfile.TemporaryDirectory()
    program = build_generator(Path(folder.name))
    server = NullServer(args.step_ms, max(args.streams, args.connections))
    try:
        generate(
            program, server.port, {**chat, "max_tokens": 1}, args.connections, max(2000, args.connections)
        )
        rss = server.rss_mib()
        cpu = server.cpu_seconds()
        whole = generate(program, server.port, {**chat, "max_tokens": 1}, args.connections, args.requests)
        growth = server.rss_mib() - rss
        whole["server_cpu_ms_per_request"] = round(1000 * (server.cpu_seconds() - cpu) / args.requests, 3)
        cpu = server.cpu_seconds()
        body = {**chat, "max_tokens": args.tokens, "stream": True}
        stream = generate(program, server.port, body, args.streams, args.streams)
        stream["tokens_per_s"] = round(args.streams * args.tokens / stream["seconds"], 1)
        spent = server.cpu_seconds() - cpu
        stream["server_cpu_us_per_token"] = round(1e6 * spent / (args.streams * args.tokens), 2)
    finally:
        server.close()
        folder.cleanup()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{' '.join(sys.argv)}   {machine}")
    print(
        f"whole   connections={args.connections} max_tokens=1   {whole['requests_per_s']} requests/s   "
        f"{whole['server_cpu_ms_per_request']} ms CPU/request   memory {growth:+.1f} MiB"
    )
    print(
        f"stream  streams={args.streams} tokens={args.tokens} interval=1   "
        f"{stream['tokens_per_s']} tokens/s   {stream['server_cpu_us_per_token']} us CPU/token   "
        f"gap p50 {stream['gap_p50_ms']} ms p99 {stream['gap_p99_ms']} ms   "
        f"first event p50 {stream['ttft_p50_ms']} ms"
    )
    if args.json:
        result = {"machine": machine, "whole": whole, "stream": stream, "memory_growth_mib": growth}
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
