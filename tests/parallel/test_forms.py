"""Every way to start several ranks serves a chat request; what does not fit ends with one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmx.model_path import demo_model_path
from parallel.processes import free_port, start, wait_gone

SERVE = ("-m", "mmx.server")
SMALL = ("--device", "cpu", "--kv-cache-memory-bytes", "64M", "--shutdown-timeout", "1", "--port", "0")
START_SECONDS = 60.0
Commands = Sequence[tuple[Sequence[str], dict[str, str]]]


@contextmanager
def started(commands: Commands, folder: Path) -> Iterator[list[tuple[subprocess.Popen[bytes], Path]]]:
    """Several commands at once; afterwards none of their processes is left."""
    running = []
    for i, (words, environ) in enumerate(commands):
        log = folder / f"{i}.log"
        running.append((start(words, log, **environ), log))
    try:
        yield running
    finally:
        for process, _ in running:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process, _ in running:
            process.wait()


def url_of(log: Path, processes: Sequence[subprocess.Popen[bytes]]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text()
        if "Application startup complete." in text:
            found = re.search(r"listening on (http://\S+),", text)
            assert found is not None
            return found[1]
        assert all(process.poll() is None for process in processes), text
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def ask(url: str, **more: object) -> str:
    body = {
        "messages": [{"role": "user", "content": "What is 2+3?"}],
        "max_tokens": 8,
        "temperature": 0,
    } | more
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        message = json.load(response)["choices"][0]["message"]
    return (message.get("reasoning_content") or "") + (message.get("content") or "")


def serves(commands: Commands, folder: Path) -> None:
    """One chat request through rank 0; when it stops, all commands end."""
    with started(commands, folder) as running:
        processes = [process for process, _ in running]
        log = running[0][1]
        url = url_of(log, processes)
        assert ask(url)
        # Masks of a grammar reach the ranks with the step.
        schema = {"type": "object", "properties": {"n": {"enum": [3, 5]}}, "required": ["n"]}
        answer = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        thinking = {"thinking_mode": "disabled"}
        text = ask(url, response_format=answer, max_tokens=60, chat_template_kwargs=thinking)
        assert json.loads(text)["n"] in (3, 5)
        text = log.read_text()
        assert re.search(r"rank 0 waits for \d ranks at \S+ port \d+ \(incoming\), told by", text)
        assert re.search(r"collectives meet at port \d+", text)
        processes[0].send_signal(signal.SIGTERM)
        wait_gone([process.pid for process in processes], 30)


def torchrun(
    *words: str, nodes: int = 1, node: int = 0, ranks: int = 2, port: int = 0, address: str = "127.0.0.1"
) -> list[str]:
    sizes = ["--nnodes", str(nodes), "--node-rank", str(node), "--nproc-per-node", str(ranks)]
    meet = ["--master-addr", address, "--master-port", str(port or free_port())]
    return ["-m", "torch.distributed.run", *sizes, *meet, *SERVE, *SMALL, *words]


def slurm(rank: int, world: int) -> dict[str, str]:
    variables = {"PROCID": rank, "NTASKS": world, "LOCALID": rank, "STEP_ID": 0, "JOB_ID": os.getpid()}
    return {f"SLURM_{name}": str(value) for name, value in variables.items()} | {
        "SLURM_JOB_NODELIST": socket.gethostname(),
        "SLURM_NTASKS_PER_NODE": str(world),
    }


def test_torchrun(tmp_path: Path) -> None:
    """Two groups of one process each, as on two nodes."""
    port = free_port()
    commands = [(torchrun("-tp", "2", nodes=2, node=node, ranks=1, port=port), {}) for node in range(2)]
    serves(commands, tmp_path)


def test_srun_through_the_wrapper(tmp_path: Path) -> None:
    """The TRT guide's command: ``mmx launch`` in front, the layout in its YAML file."""
    options = tmp_path / "options.yaml"
    options.write_text("tensor_parallel_size: 2\nmoe_expert_parallel_size: 2\nenable_attention_dp: true\n")
    words = ["-m", "mmx", "launch", sys.executable, *SERVE, str(demo_model_path()), *SMALL]
    words += ["--trust_remote_code", "--extra_llm_api_options", str(options)]
    serves([(words, slurm(rank, 2)) for rank in range(2)], tmp_path)


def test_headless_groups(tmp_path: Path) -> None:
    """The vLLM form: the head and a headless command, each with one data-parallel group of two ranks."""
    shared = ["-tp", "2", "-dp", "2", "--enable-expert-parallel", "--data-parallel-size-local", "1"]
    shared += ["--data-parallel-address", "127.0.0.2", "--data-parallel-rpc-port", str(free_port())]
    head = [*SERVE, *SMALL, *shared, "--data-parallel-start-rank", "0"]
    other = [*SERVE, *SMALL, *shared, "--headless", "--data-parallel-start-rank", "1"]
    serves([(head, {}), (other, {})], tmp_path)


def test_nodes_and_mpirun(tmp_path: Path) -> None:
    """mpirun's variables with world 2 and, in the same breath, processors of their own."""
    port = str(free_port())
    environs = [
        {
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "MASTER_PORT": port,
        }
        for rank in range(2)
    ]
    words = [*SERVE, *SMALL, "-tp", "2", "--enable-cpu-binding"]
    serves([(words, environ) for environ in environs], tmp_path)


# ---- what does not fit -------------------------------------------------------------------------------------


def ends(commands: Commands, folder: Path, seconds: float = 60.0) -> list[tuple[int, str]]:
    """Exit codes and outputs of commands that all end by themselves."""
    with started(commands, folder) as running:
        deadline = time.monotonic() + seconds
        for process, _ in running:
            process.wait(max(0.1, deadline - time.monotonic()))
        return [(process.returncode, log.read_text()) for process, log in running]


def nodes(node: int, port: int, *words: str, world: int = 2, patience: int = 40) -> list[str]:
    """``patience``: a rank waits so many seconds for another, whose imports take some of them."""
    flags = ["-tp", str(world), "--nnodes", "2", "--node-rank", str(node)]
    flags += ["--master-addr", "127.0.0.1", "--master-port", str(port), "--rendezvous-timeout", str(patience)]
    return [*SERVE, *SMALL, *flags, *(["--headless"] if node else []), *words]


def test_wrong_world_size(tmp_path: Path) -> None:
    words = [*SERVE, *SMALL, "-tp", "4"]
    for code, text in ends([(words, slurm(rank, 2)) for rank in range(2)], tmp_path):
        assert code == 3
        assert "tensor_parallel_size 4 needs 4 ranks, srun started 2 (SLURM_PROCID=" in text


def test_missing_node(tmp_path: Path) -> None:
    port = free_port()
    ((code, text),) = ends([(nodes(0, port, patience=4), {})], tmp_path)
    assert code == 6
    missing = f"ranks 1 did not come to 127.0.0.1 port {port} within 4 s; here are ranks 0 of 2"
    assert missing in text and "tensor_parallel_size 2" in text
    ((code, text),) = ends([(nodes(1, port, patience=4), {})], tmp_path)
    assert code == 6
    assert f"rank 1: nobody answered at 127.0.0.1 port {port} for 4 s" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-num-seqs", "8"], "max_num_seqs is 8 there and 64 on rank 0"),
        (["--enable-sequence-parallel-norm"], "sequence_parallel_norm is True there and False on rank 0"),
    ],
)
def test_different_flags(words: list[str], sentence: str, tmp_path: Path) -> None:
    port = free_port()
    commands = [(nodes(0, port), {}), (nodes(1, port, *words), {})]
    for code, text in ends(commands, tmp_path):
        assert code == 3
        assert sentence in text


def test_different_files(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in demo_model_path().iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 10000}))
    port = free_port()
    commands = [(nodes(0, port), {}), (nodes(1, port, "--model", str(copy)), {})]
    for code, text in ends(commands, tmp_path):
        assert code == 3
        assert re.search(
            r"file config.json is sha1 \w+ there and sha1 \w+ on rank 0; start all ranks alike", text
        )


def test_strangers_at_the_port_do_no_harm(tmp_path: Path) -> None:
    port = free_port()
    with started([(nodes(0, port), {})], tmp_path) as running:
        log = running[0][1]
        deadline = time.monotonic() + START_SECONDS
        while "rank 0 waits for" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"\x03\x00\x00\x00abc")
        (tmp_path / "other").mkdir()
        with started([(nodes(1, port), {})], tmp_path / "other"):
            assert ask(url_of(log, [running[0][0]]))
        assert log.read_text().count("connected that is no rank") == 2


def test_port_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ((code, text),) = ends([(nodes(0, port), {})], tmp_path)
    assert code == 6
    assert (
        f"rank 0 can not listen on 127.0.0.1 port {port} for the other ranks: Address already in use" in text
    )


def test_a_layout_that_does_not_divide_the_model(tmp_path: Path) -> None:
    ((code, text),) = ends([([*SERVE, *SMALL, "-tp", "3"], {})], tmp_path)
    assert code == 3
    assert text.rstrip().endswith("mmx serve: tensor_parallel_size 3 must divide num_attention_heads 4")
