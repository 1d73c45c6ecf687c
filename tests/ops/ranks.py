"""Ranks that share one process: a thread each, on a GPU with a stream each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from mmx.distributed.peers import Peers


def connect(
    num_ranks: int, max_tokens: int, row_words: int, device: torch.device, timeout: float = 20.0
) -> list[Peers]:
    """What each rank calls its ops with."""
    shape = (2, num_ranks, max_tokens, row_words)
    inboxes = [torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(num_ranks)]
    return [
        Peers(inboxes, torch.zeros(max_tokens, dtype=torch.int32, device=device), rank, timeout)
        for rank in range(num_ranks)
    ]


def mirror(max_tokens: int, row_words: int, device: torch.device) -> Peers:
    """Rank 0 of two, to which everything that it sends comes back as sent by rank 1."""
    memory = torch.zeros(5 * max_tokens * row_words, dtype=torch.int64, device=device)
    size = 4 * max_tokens * row_words
    inboxes = [memory[begin : begin + size].view(2, 2, max_tokens, row_words) for begin in (0, size // 4)]
    return Peers(inboxes, torch.zeros(max_tokens, dtype=torch.int32, device=device), 0, 20.0)


def on_all_ranks(peers: Sequence[Peers], call: Callable[[Peers, int], Any]) -> list[Any]:
    """``call`` on all ranks at once; what they return, or the first error."""
    device = peers[0].epochs.device
    results: list[Any] = [None] * len(peers)
    errors: list[Exception] = []
    if device.type == "cuda":
        torch.cuda.synchronize()

    def run(rank: int) -> None:
        try:
            stream = torch.cuda.Stream() if device.type == "cuda" else None
            with torch.cuda.stream(stream) if stream else nullcontext():
                results[rank] = call(peers[rank], rank)
                if stream:
                    stream.synchronize()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(peers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
