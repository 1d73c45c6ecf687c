"""Which rank this process is: read from flags or from the variables of whatever started it.

Sources in order: flags that name nodes, torchrun, Slurm, Open MPI, PMI. Without any, or where the launcher
started one process, the ranks are started here. No MPI library takes part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from mmx.config import ParallelConfig, Place
from mmx.errors import ConfigError, LaunchError

DEFAULT_PORT = 29550
# torchrun listens at MASTER_PORT itself; Slurm jobs on one machine get ports of their own.
PORT_AFTER_TORCHRUN = 1
FIRST_JOB_PORT, NUM_JOB_PORTS = 20000, 10000
# Who starts the processes, and its variables: rank, world size, and the same among those of the machine.
_OPEN_MPI, _PMI_LOCAL = "OMPI_COMM_WORLD_", ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_MPI = (
    ("mpirun", *(_OPEN_MPI + name for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("the PMI launcher", "PMI_RANK", "PMI_SIZE", *_PMI_LOCAL),
    ("the PMI launcher", "PMIX_RANK", "PMI_SIZE", *_PMI_LOCAL),
)


class LaunchFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags that say which part of the ranks this command starts."""

    headless: bool = False
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str | None = None
    master_port: int | None = None
    data_parallel_size_local: int | None = None
    data_parallel_start_rank: int = 0
    data_parallel_address: str | None = None
    data_parallel_rpc_port: int | None = None
    bind_cpus: bool = False


class _Started(msgspec.Struct, frozen=True, kw_only=True):
    """What a launcher says; ``shown`` are its variables with their values."""

    source: str
    shown: str
    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str | None
    port: int


def find_place(parallel: ParallelConfig, flags: LaunchFlags, environ: Mapping[str, str]) -> Place:
    """The ranks to start here, and where rank 0 waits. ConfigError or LaunchError in one sentence where
    sizes, flags and launcher do not fit together."""
    world = parallel.world_size
    place = _by_nodes(parallel, flags) or _by_groups(parallel, flags)
    started = _launcher(environ)
    if place is not None:
        if started is not None and started.world > 1:
            raise LaunchError(
                f"{place.source} and {started.source} ({started.shown}) both say which rank this is; "
                "use one of them"
            )
        if flags.headless != (place.first_rank > 0):
            what = "needs --headless" if place.first_rank else "can not be --headless"
            raise ConfigError(
                f"the command that starts rank {place.first_rank} {what}: rank 0 alone answers HTTP"
            )
        return place
    if flags.headless:
        raise ConfigError(
            "--headless: give --data-parallel-start-rank or --node-rank, so that rank 0 is elsewhere"
        )
    if started is None or started.world == 1:
        here, port = flags.master_addr or "127.0.0.1", flags.master_port or 0
        return Place(address=here, port=port, bind_cpus=flags.bind_cpus)
    if started.world != world:
        raise ConfigError(
            f"{parallel.describe_world()} needs {world} ranks, {started.source} started {started.world} "
            f"({started.shown})"
        )
    address = flags.master_addr or started.address
    if address is None:
        raise LaunchError(
            f"{started.source} does not say on which machine rank 0 runs: give --master-addr or MASTER_ADDR"
        )
    return Place(
        first_rank=started.rank,
        num_local=1,
        single=True,
        local_rank=started.local_rank,
        local_world=started.local_world,
        address=address,
        port=flags.master_port or started.port,
        source=started.source,
        bind_cpus=flags.bind_cpus,
    )


# ---- flags -------------------------------------------------------------------------------------------------


def _by_nodes(parallel: ParallelConfig, flags: LaunchFlags) -> Place | None:
    world, nnodes = parallel.world_size, flags.nnodes
    if nnodes == 1:
        return None
    if nnodes < 1 or world % nnodes:
        raise ConfigError(f"--nnodes {nnodes} must divide the {world} ranks of {parallel.describe_world()}")
    if not 0 <= flags.node_rank < nnodes:
        raise ConfigError(f"--node-rank must be 0 to {nnodes - 1}, got {flags.node_rank}")
    if flags.master_addr is None:
        raise ConfigError(f"--nnodes {nnodes} needs --master-addr, the address of node 0")
    num_local = world // nnodes
    return Place(
        first_rank=flags.node_rank * num_local,
        num_local=num_local,
        address=flags.master_addr,
        port=flags.master_port or DEFAULT_PORT,
        source="--nnodes",
        bind_cpus=flags.bind_cpus,
    )


def _by_groups(parallel: ParallelConfig, flags: LaunchFlags) -> Place | None:
    dp = parallel.data_parallel_size
    local = dp if flags.data_parallel_size_local is None else flags.data_parallel_size_local
    first = flags.data_parallel_start_rank
    if local == dp and first == 0:
        return None
    if local < 1 or dp % local or first % local or not 0 <= first < dp:
        raise ConfigError(
            f"--data-parallel-size-local {local} from --data-parallel-start-rank {first} on is no equal "
            f"part of --data-parallel-size {dp}"
        )
    if flags.data_parallel_address is None:
        raise ConfigError("--data-parallel-size-local needs --data-parallel-address, where rank 0 waits")
    per_group = parallel.world_size // dp
    return Place(
        first_rank=first * per_group,
        num_local=local * per_group,
        address=flags.data_parallel_address,
        port=flags.data_parallel_rpc_port or DEFAULT_PORT,
        source="--data-parallel-size-local",
        bind_cpus=flags.bind_cpus,
    )


# ---- launchers ---------------------------------------------------------------------------------------------


def _launcher(environ: Mapping[str, str]) -> _Started | None:
    for read in (_torchrun, _slurm, _mpi):
        started = read(environ)
        if started is not None:
            return started
    return None


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdigit():
        raise LaunchError(f"{name} must be a number, got {text!r}")
    return int(text)


def _shown(environ: Mapping[str, str], *names: str) -> str:
    return ", ".join(f"{name}={environ[name]}" for name in names if name in environ)


def _torchrun(environ: Mapping[str, str]) -> _Started | None:
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        return None
    world = _number(environ, "WORLD_SIZE")
    return _Started(
        source="torchrun",
        shown=_shown(environ, "RANK", "WORLD_SIZE"),
        rank=_number(environ, "RANK"),
        world=world,
        local_rank=_number(environ, "LOCAL_RANK", _number(environ, "RANK")),
        local_world=_number(environ, "LOCAL_WORLD_SIZE", world),
        address=environ["MASTER_ADDR"],
        port=_number(environ, "MASTER_PORT") + PORT_AFTER_TORCHRUN,
    )


def _slurm(environ: Mapping[str, str]) -> _Started | None:
    # Why the step: an interactive allocation shows its job's variables to a single process.
    if not {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"} <= environ.keys():
        return None
    world = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS"))
    nodes = hosts(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    local_world = re.match(r"\d+", environ.get("SLURM_NTASKS_PER_NODE", ""))
    return _Started(
        source="srun",
        shown=_shown(environ, "SLURM_PROCID", "SLURM_NTASKS"),
        rank=_number(environ, "SLURM_PROCID"),
        world=world,
        local_rank=_number(environ, "SLURM_LOCALID", 0),
        local_world=int(local_world[0]) if local_world else -(-world // max(len(nodes), 1)),
        address=environ.get("MASTER_ADDR") or (nodes[0] if len(nodes) > 1 else "127.0.0.1"),
        port=_number(
            environ, "MASTER_PORT", FIRST_JOB_PORT + _number(environ, "SLURM_JOB_ID", 0) % NUM_JOB_PORTS
        ),
    )


def _mpi(environ: Mapping[str, str]) -> _Started | None:
    for source, *names in _MPI:
        rank, size, local_rank, local_size = names
        if rank not in environ or size not in environ:
            continue
        world = _number(environ, size)
        local_world = _number(environ, local_size, world)
        here = local_size in environ and local_world == world
        return _Started(
            source=source,
            shown=_shown(environ, rank, size),
            rank=_number(environ, rank),
            world=world,
            local_rank=_number(environ, local_rank, _number(environ, rank) % local_world),
            local_world=local_world,
            address=environ.get("MASTER_ADDR") or ("127.0.0.1" if here else None),
            port=_number(environ, "MASTER_PORT", DEFAULT_PORT),
        )
    return None


def hosts(nodelist: str) -> list[str]:
    """Slurm's bracket form written out: ``a[1-3,7],b`` -> a1 a2 a3 a7 b; leading zeros stay."""
    found: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?[^,\[]*", nodelist):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if match is None:
            found.append(part)
            continue
        for span in match[2].split(","):
            first, _, last = span.partition("-")
            for number in range(int(first), int(last or first) + 1):
                found.append(f"{match[1]}{number:0{len(first)}d}{match[3]}")
    return found
