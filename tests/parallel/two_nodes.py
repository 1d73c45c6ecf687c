"""Two nodes as two network namespaces with one cable: ``unshare -Urn python -m parallel.two_nodes FORM DIR``.

The process is on the first node, which has 10.77.0.1 and rank 0; the second one has 10.77.0.2. Ends with 0 if
all holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parallel.processes import free_port, wait_gone
from parallel.test_forms import SERVE, SMALL, Commands, ask, serves, started, torchrun, url_of

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
LIMIT_SECONDS = 15.0
# Both ends of the cable have this name; without it gloo takes the interface of the machine's name.
CARD = {"GLOO_SOCKET_IFNAME": "card0", "TP_SOCKET_IFNAME": "card0"}


def ip(*words: str, node: int | None = None) -> None:
    enter = [] if node is None else ["nsenter", "--target", str(node), "--net"]
    subprocess.run([*enter, "ip", *words], check=True)


@contextmanager
def second_node() -> Iterator[int]:
    """A process whose network is the second node's, connected."""
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as holder:
        try:
            own, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + 10
            while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            ip("link", "set", "lo", "up")
            ip("link", "set", "lo", "up", node=holder.pid)
            ip("link", "add", "card0", "type", "veth", "peer", "name", "card0", "netns", str(holder.pid))
            for address, node in ((FIRST, None), (SECOND, holder.pid)):
                ip("address", "add", f"{address}/24", "dev", "card0", node=node)
                ip("link", "set", "card0", "up", node=node)
            yield holder.pid
        finally:
            holder.kill()


def there(node: int, words: list[str]) -> list[str]:
    return ["-m", "parallel.enter", str(node), *words]


def with_torchrun(node: int) -> Commands:
    port = free_port(FIRST)
    words = [torchrun("-tp", "2", nodes=2, node=i, ranks=1, port=port, address=FIRST) for i in range(2)]
    return [(words[0], CARD), (there(node, words[1]), CARD)]


def with_slurm(node: int) -> Commands:
    words = [*SERVE, *SMALL, "-tp", "2"]
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    job |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "10.77.0.[1-2]"} | CARD
    return [(words, job | {"SLURM_PROCID": "0"}), (there(node, words), job | {"SLURM_PROCID": "1"})]


def headless(node: int) -> Commands:
    """Two data-parallel groups that share the experts, one on each node."""
    shared = ["-dp", "2", "--enable-expert-parallel", "--data-parallel-size-local", "1"]
    shared += ["--data-parallel-address", FIRST, "--data-parallel-rpc-port", str(free_port(FIRST))]
    head = [*SERVE, *SMALL, *shared, "--data-parallel-start-rank", "0"]
    other = [*SERVE, *SMALL, *shared, "--headless", "--data-parallel-start-rank", "1"]
    return [(head, CARD), (there(node, other), CARD)]


FORMS: dict[str, Callable[[int], Commands]] = {
    "torchrun": with_torchrun,
    "slurm": with_slurm,
    "headless": headless,
}


def cut(folder: Path, node: int) -> None:
    """The cable is pulled in mid-decode under load: every request ends with an error, /health says 503, and
    nobody is left on either node."""
    with started(headless(node), folder) as running:
        processes = [process for process, _ in running]
        url = url_of(running[0][1], processes)
        ends: list[str] = []

        def stream() -> None:
            try:
                ends.append(ask(url, max_tokens=20000, ignore_eos=True))
            except urllib.error.HTTPError as error:
                ends.append(str(error.code))

        threads = [threading.Thread(target=stream) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        assert not ends
        ip("link", "set", "card0", "down")
        began = time.monotonic()
        healths = set()
        while any(thread.is_alive() for thread in threads) or 503 not in healths:
            assert time.monotonic() - began < LIMIT_SECONDS, f"requests {ends}, /health {healths}"
            try:
                with urllib.request.urlopen(url + "/health", timeout=5) as response:
                    healths.add(response.status)
            except urllib.error.HTTPError as error:
                healths.add(error.code)
            time.sleep(0.02)
        assert ends == ["503"] * 4, ends
        wait_gone([process.pid for process in processes], LIMIT_SECONDS)
        assert [process.wait() != 0 for process in processes] == [True, True]
        assert "has been silent for 8 s" in running[0][1].read_text()
        assert "rank 0 has gone" in running[1][1].read_text()


def main(form: str, folder: Path) -> None:
    signal.alarm(150)
    with second_node() as node:
        if form == "cut":
            cut(folder, node)
        else:
            serves(FORMS[form](node), folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
