"""One rank among the others: its share of the model and the groups it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist

from mmx import ops
from mmx.distributed.group import CallLog, Group
from mmx.distributed.peers import Peers, map_peers
from mmx.layout import Layout, share_of
from mmx.model_config import ModelConfig

LIBRARIES = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}

Handles = dict[tuple[int, ...], dist.ProcessGroup | None]


class Ranks:
    """``share`` is what this rank holds. ``tensor`` ranks see the same tokens, ``spread`` ranks exchange
    tokens around the experts, ``context`` ranks the K and V of prompts they compute together, ``decode``
    ranks share the pages of a sequence (see ``mmx.layout``)."""

    def __init__(
        self, config: ModelConfig, layout: Layout, rank: int, log: CallLog, handles: Handles | None = None
    ) -> None:
        """``handles`` from ``connect``; none for the only rank."""
        handles = handles or {}
        self.layout = layout
        self.rank = rank
        self.share = share_of(config, layout, rank)
        self.log = log

        def group(name: str, ranks: tuple[int, ...]) -> Group:
            return Group(name, ranks, rank, log, handles.get(ranks))

        self.tensor = group("tensor", layout.tensor_group(rank))
        self.spread = group("spread", layout.spread_group(rank))
        self.context = group("context", layout.context_group(rank))
        self.decode = group("decode", layout.decode_group(rank))
        self.world = group("world", tuple(range(layout.world_size)))
        self.peers: Peers | None = None  # of the tensor group, where its sums may go through mapped memory

    @classmethod
    def alone(cls, config: ModelConfig) -> Ranks:
        """The only rank."""
        return cls(config, Layout(), 0, CallLog())

    @classmethod
    def join(
        cls,
        config: ModelConfig,
        layout: Layout,
        rank: int,
        *,
        device: torch.device,
        address: str,
        port: int,
        timeout: float,
        log: CallLog,
        maps_memory: bool = True,
    ) -> Ranks:
        """Meet the other ranks at the store that rank 0 opens at ``address:port``, within ``timeout``
        seconds. ``maps_memory``: GPUs that can do so make small sums through each other's memory."""
        wait = timedelta(seconds=timeout)
        world = layout.world_size
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, world, is_master=rank == 0, timeout=wait
        )
        dist.init_process_group(
            LIBRARIES[device.type],
            store=store,
            rank=rank,
            world_size=world,
            timeout=wait,
            device_id=device if device.type != "cpu" else None,
        )
        ranks = cls(config, layout, rank, log, connect(layout, {}))
        if maps_memory and device.type == "cuda" and not layout.sequence_parallel:
            ranks.peers = map_peers(layout.tensor_group(rank), rank, config.hidden, device, store, timeout)
        return ranks

    @property
    def owns_tokens(self) -> bool:
        """Whether no other rank is told how many tokens this one has, which may then drop some."""
        groups = self.spread, self.context, self.decode
        return all(group.size == 1 for group in groups) and not self.layout.sequence_parallel

    @contextmanager
    def in_turn(self, lock: AbstractContextManager[None], device: torch.device) -> Iterator[None]:
        """Inside ``lock``, which the ranks take one after the other: of two engines that need the same locks,
        none holds one while it waits for the other's."""
        with ExitStack() as stack:
            for turn in range(self.layout.world_size):
                if turn == self.rank:
                    stack.enter_context(lock)
                self.world.least(0, device)
            yield

    def leave(self) -> None:
        """Give the connections back."""
        if self.layout.world_size > 1:
            dist.destroy_process_group()

    # ---- the residual stream -----------------------------------------------------------------------------

    def reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor group of what each rank's heads or columns gave: [num_tokens, hidden], or, with
        sequence-parallel norms, this rank's slice of it, padded to [ceil(num_tokens / tp), hidden]."""
        if not self.layout.sequence_parallel:
            return self.tensor.all_reduce(partial)
        missing = -partial.shape[0] % self.tensor.size
        if missing:
            partial = torch.cat([partial, partial.new_zeros((missing, partial.shape[1]))])
        return self.tensor.reduce_scatter(partial)

    def add_norm(
        self,
        residual: torch.Tensor,
        part: torch.Tensor,
        norm: tuple[torch.Tensor, float, bool],
        quantize: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """``reduce`` of ``part``, which is overwritten, and ``ops.add_rms_norm`` of that; with ``quantize``
        its codes and their scale as well. ``norm``: weight, eps and whether it is in Gemma form."""
        if self.peers is not None and self._is_small(part):
            with self.log.call("mapped_all_reduce", "tensor", part):
                where = (*norm, *self.peers, quantize)
                return ops.all_reduce_add_rms_norm(residual, part, *where, out=part)
        total = self.reduce(part)
        if quantize:
            return ops.add_rms_norm_quantize(residual, total, *norm, out=total)
        return (ops.add_rms_norm(residual, total, *norm, out=total),)

    def zeros(self, part: torch.Tensor) -> torch.Tensor:
        """A residual stream to which ``reduce`` of ``part`` can be added."""
        parts = self.tensor.size if self.layout.sequence_parallel else 1
        return part.new_zeros((-(-part.shape[0] // parts), part.shape[1]))

    def mean_squares(self, qkv: torch.Tensor, num_heads: int, num_kv_heads: int) -> torch.Tensor:
        """Of q and of k over the heads of the whole tensor group: [num_tokens, 2] f32. Ranks may hold the
        same heads: each does so equally often, hence the mean of the means stays right.

        Args:
            qkv: [num_tokens, heads, head_dim], q | k | others.
        """
        arguments = (qkv, num_heads, num_kv_heads, self.tensor.size)
        if self._is_small(qkv):
            with self.log.call("mapped_all_reduce", "tensor", qkv[:, :0]):
                return ops.qk_mean_squares(*arguments, *self.peers or ())
        return self.tensor.all_reduce(ops.qk_mean_squares(*arguments))

    def _is_small(self, rows: torch.Tensor) -> bool:
        """Whether a row per token of ``rows`` goes through mapped memory."""
        return self.peers is not None and 0 < rows.shape[0] <= self.peers.max_tokens

    def whole(self, x: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """All tokens again: [num_tokens, hidden]."""
        return self.tensor.all_gather(x)[:num_tokens] if self.layout.sequence_parallel else x


def connect(layout: Layout, made: Handles) -> Handles:
    """Make the groups of a layout that are not ``made`` yet. Every process of the world calls this, with the
    same layouts in one order, whether it takes part or not."""
    world = tuple(range(layout.world_size))
    groups = {
        group(rank)
        for rank in world
        for group in (layout.tensor_group, layout.spread_group, layout.context_group, layout.decode_group)
    }
    for ranks in sorted({*groups, world}):
        if len(ranks) > 1 and ranks not in made:
            whole = len(ranks) == dist.get_world_size()
            handle = dist.group.WORLD if whole else dist.new_group(list(ranks))
            made[ranks] = cast("dist.ProcessGroup | None", handle)
    return made
