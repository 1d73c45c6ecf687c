"""The server as a process of its own."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = "import sys; from mmx.server.__main__ import main; sys.exit(main(sys.argv[2:], runner=sys.argv[1]))"
DEADLINE_SECONDS = 30.0


class Process:
    """A started server; ``log`` grows while it runs."""

    def __init__(self, runner: str, *flags: str) -> None:
        env = dict(os.environ)
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, runner, "--port", "0", *flags],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"listening on (https?://\S+),")[1]

    def _read(self) -> None:
        assert self.child.stderr is not None
        self.log.extend(iter(self.child.stderr.readline, ""))

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            for line in list(self.log):
                if found := re.search(pattern, line):
                    return found
            assert self.child.poll() is None, "".join(self.log)
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in the log:\n" + "".join(self.log))

    def ready(self) -> Process:
        self.wait_for("Application startup complete.")
        return self

    def get(self, path: str, context: ssl.SSLContext | None = None) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10, context=context) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stream(self, max_tokens: int) -> Any:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            self.url + "/v1/chat/completions", json.dumps(body).encode(), headers
        )
        response = urllib.request.urlopen(request, timeout=30)
        assert response.readline().startswith(b"data: ")
        return response

    def engine_pid(self) -> int:
        (child,) = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        return int(child)

    def wait(self) -> int:
        code = self.child.wait(DEADLINE_SECONDS)
        self._reader.join(5)
        return code


@contextmanager
def server(runner: str = "null?step_seconds=0.01", *flags: str) -> Iterator[Process]:
    """A started server that is certainly gone afterwards."""
    process = Process(runner, *flags)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.wait()
