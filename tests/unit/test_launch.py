"""Which ranks a command starts: flags, torchrun, Slurm, MPI, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest

from mmx.config import ParallelConfig, Place
from mmx.errors import ConfigError, LaunchError
from mmx.launch import LaunchFlags, find_place, hosts

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "4000",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_ID": "0",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "12345",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "4000",
}
PMI = {
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "4",
    "MASTER_ADDR": "node0",
}


def place(environ: dict[str, str], tp: int = 8, dp: int = 1, **flags: Any) -> Place:
    parallel = ParallelConfig(tensor_parallel_size=tp, data_parallel_size=dp)
    return find_place(parallel, LaunchFlags(**flags), environ)


@pytest.mark.parametrize(
    ("environ", "address", "port", "source"),
    [
        (TORCHRUN, "node0", 4001, "torchrun"),
        (SLURM, "gpu07", 20000 + 2345, "srun"),
        (SLURM | {"MASTER_ADDR": "node0", "MASTER_PORT": "4000"}, "node0", 4000, "srun"),
        (MPI, "node0", 4000, "mpirun"),
        (PMI, "node0", 29550, "the PMI launcher"),
        (
            TORCHRUN | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
            "node0",
            4001,
            "torchrun",
        ),
    ],
)
def test_launchers(environ: dict[str, str], address: str, port: int, source: str) -> None:
    found = place(environ)
    assert (found.first_rank, found.num_local, found.single) == (5, 1, True)
    assert (found.local_rank, found.local_world) == (1, 4)
    assert (found.address, found.port, found.source) == (address, port, source)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        # An interactive allocation, and launchers that started one process.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_process_starts_all_ranks(environ: dict[str, str]) -> None:
    found = place(environ)
    assert (found.first_rank, found.num_local, found.single) == (0, None, False)
    assert (found.address, found.port) == ("127.0.0.1", 0)


def test_node_by_node() -> None:
    found = place({}, nnodes=2, node_rank=1, master_addr="node0", headless=True)
    assert (found.first_rank, found.num_local, found.single) == (4, 4, False)
    assert (found.address, found.port) == ("node0", 29550)


def test_groups_of_two_commands() -> None:
    flags = {"data_parallel_size_local": 1, "data_parallel_address": "node0", "data_parallel_rpc_port": 2347}
    head = place({}, 4, 2, **flags)
    other = place({}, 4, 2, **flags, data_parallel_start_rank=1, headless=True)
    assert (head.first_rank, head.num_local) == (0, 4)
    assert (other.first_rank, other.num_local) == (4, 4)
    assert (other.address, other.port) == ("node0", 2347)


@pytest.mark.parametrize(
    ("environ", "flags", "error", "text"),
    [
        (
            TORCHRUN,
            {"tp": 4},
            ConfigError,
            "tensor_parallel_size 4 needs 4 ranks, torchrun started 8 (RANK=5, W",
        ),
        (
            TORCHRUN,
            {"tp": 2, "dp": 2},
            ConfigError,
            "tensor_parallel_size 2 x data_parallel_size 2 needs 4 ranks",
        ),
        (TORCHRUN, {"tp": 1}, ConfigError, "tensor_parallel_size 1 needs 1 ranks, torchrun started 8"),
        (TORCHRUN | {"RANK": "x"}, {}, LaunchError, "RANK must be a number, got 'x'"),
        (
            TORCHRUN,
            {"nnodes": 2, "master_addr": "a"},
            LaunchError,
            "--nnodes and torchrun (RANK=5, WORLD_SIZE=8)",
        ),
        (
            {k: v for k, v in PMI.items() if k != "MASTER_ADDR"},
            {},
            LaunchError,
            "on which machine rank 0 runs",
        ),
        ({}, {"nnodes": 3, "master_addr": "a"}, ConfigError, "--nnodes 3 must divide the 8 ranks"),
        ({}, {"nnodes": 2}, ConfigError, "--nnodes 2 needs --master-addr"),
        (
            {},
            {"nnodes": 2, "node_rank": 2, "master_addr": "a"},
            ConfigError,
            "--node-rank must be 0 to 1, got 2",
        ),
        ({}, {"nnodes": 2, "node_rank": 1, "master_addr": "a"}, ConfigError, "rank 4 needs --headless"),
        ({}, {"headless": True}, ConfigError, "--headless: give --data-parallel-start-rank or --node-rank"),
        (
            {},
            {"dp": 4, "data_parallel_size_local": 3, "data_parallel_address": "a"},
            ConfigError,
            "--data-parallel-size-local 3 from --data-parallel-start-rank 0 on is no equal part",
        ),
        ({}, {"dp": 4, "data_parallel_size_local": 2}, ConfigError, "needs --data-parallel-address"),
    ],
)
def test_refusals(environ: dict[str, str], flags: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        place(environ, **flags)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_node_lists_of_slurm() -> None:
    assert hosts("a") == ["a"]
    assert hosts("a[1-3,07],b,c[09-10]-x") == ["a1", "a2", "a3", "a07", "b", "c09-x", "c10-x"]
