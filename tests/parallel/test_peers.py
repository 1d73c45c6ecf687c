"""Mapping the ranks' memory: where it must not be, and two processes that share a GPU."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmx import ops
from mmx.distributed import CallLog, Ranks
from mmx.distributed.peers import map_peers
from mmx.layout import Layout
from mmx.model_config import load_model_config
from models.tiny import write_tiny_checkpoint

TIMEOUT = 60.0
EPS = 1e-6


@pytest.mark.parametrize(
    ("ranks", "width"),
    [((3,), 64), (tuple(range(9)), 64), ((3, 4), 60), ((3, 4), 8200)],
    ids=["one", "nine", "part of a run", "too wide"],
)
def test_what_the_kernel_does_not_serve(ranks: tuple[int, ...], width: int) -> None:
    store = SimpleNamespace()  # is not asked
    assert map_peers(ranks, 3 % len(ranks) + ranks[0], width, torch.device("cpu"), store, 1.0) is None


def test_ranks_of_two_hosts() -> None:
    said: dict[str, bytes] = {}
    store = SimpleNamespace(set=said.__setitem__, get=lambda key: b"another boot of another machine")
    assert map_peers((0, 1), 1, 64, torch.device("cpu"), store, 1.0) is None
    assert list(said) == ["peers/0/host/1/all"]


@pytest.mark.parametrize("maps", [True, False])
def test_memory_is_mapped_unless_the_library_shall_sum(
    maps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in (("map_peers", "peers"), ("connect", {})):
        monkeypatch.setattr(f"mmx.distributed.ranks.{name}", lambda *args, found=found: found)
    for name in ("TCPStore", "init_process_group"):
        monkeypatch.setattr(dist, name, lambda *args, **settings: None)
    ranks = Ranks.join(
        load_model_config(write_tiny_checkpoint(tmp_path, "m2")),
        Layout(tp=2),
        1,
        device=torch.device("cuda", 0),
        address="127.0.0.1",
        port=1,
        timeout=1.0,
        log=CallLog(),
        maps_memory=maps,
    )
    assert ranks.peers == ("peers" if maps else None)


def run_rank(rank: int, port: int) -> None:
    device = torch.device("cuda", 0)
    store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=TIMEOUT))
    peers = map_peers((4, 5), 4 + rank, 64, device, store, TIMEOUT)
    assert peers is not None and peers.rank == rank and peers.max_tokens == 256
    for step in range(3):
        rng = torch.Generator().manual_seed(step)
        a, b, residual = (torch.randn(5, 64, generator=rng).bfloat16().to(device) for _ in range(3))
        weight = torch.ones(64, device=device)
        expected_sum = residual.clone()
        expected = ops.add_rms_norm(expected_sum, a + b, weight, EPS, False)
        (out,) = ops.all_reduce_add_rms_norm(residual, (a, b)[rank], weight, EPS, False, *peers)
        assert torch.equal(out, expected) and torch.equal(residual, expected_sum)
    # Memory that another rank has mapped stays until it is done.
    store.set(f"done {rank}", "")
    store.wait(["done 0", "done 1"])


@pytest.mark.cuda
def test_two_processes_sum_through_one_gpu() -> None:
    # Not in a rank: the store would end with it while the other still asks.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(run_rank, args=(store.port,), nprocs=2)
