"""Ranks take locks one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from mmx.distributed import CallLog, Ranks
from mmx.layout import Layout
from mmx.model_config import load_model_config
from models.tiny import write_tiny_checkpoint


def test_locks_are_taken_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    """The last rank comes first, and still waits for the lock until all before it have theirs."""
    size, events = 3, []
    config = load_model_config(write_tiny_checkpoint(tmp_path, "m2"))
    meeting = threading.Barrier(size, timeout=20)
    arrived = [threading.Event() for _ in range(size + 1)]
    arrived[size].set()

    @contextmanager
    def lock(rank: int) -> Iterator[None]:
        events.append(f"lock {rank}")
        yield
        events.append(f"unlock {rank}")

    def run(rank: int) -> None:
        ranks = Ranks(config, Layout(dp=size), rank, CallLog())
        ranks.world = SimpleNamespace(least=lambda value, device: meeting.wait())  # type: ignore[assignment]
        arrived[rank + 1].wait(20)
        arrived[rank].set()
        with ranks.in_turn(lock(rank), torch.device("cpu")):
            assert sorted(events[:size]) == [f"lock {i}" for i in range(size)]
            meeting.wait()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events[:size] == [f"lock {i}" for i in range(size)]
    assert sorted(events[size:]) == [f"unlock {i}" for i in range(size)]
