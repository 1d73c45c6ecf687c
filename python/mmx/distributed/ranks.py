"""One rank among the others: its share of the model and the groups it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from mmx.distributed.group import CallLog, Group
from mmx.layout import Layout, share_of
from mmx.model_config import ModelConfig

LIBRARIES = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


class Ranks:
    """``share`` is what this rank holds. ``tensor`` ranks see the same tokens, ``spread`` ranks exchange
    tokens around the experts, ``context`` ranks the K and V of prompts they compute together (see
    ``mmx.layout``)."""

    def __init__(self, config: ModelConfig, layout: Layout, rank: int, log: CallLog, make: MakeGroup) -> None:
        self.layout = layout
        self.rank = rank
        self.share = share_of(config, layout, rank)
        self.log = log
        self.tensor = make("tensor", layout.tensor_group)
        self.spread = make("spread", layout.spread_group)
        self.context = make("context", layout.context_group)
        self.world = make("world", lambda _: tuple(range(layout.world_size)))

    @classmethod
    def alone(cls, config: ModelConfig) -> Ranks:
        """The only rank."""
        log = CallLog()
        return cls(config, Layout(), 0, log, lambda name, _: Group(name, (0,), 0, log))

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
    ) -> Ranks:
        """Meet the other ranks at the store that rank 0 opens at ``address:port``, within ``timeout``
        seconds."""
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

        made: dict[tuple[int, ...], dist.ProcessGroup | None] = {tuple(range(world)): dist.group.WORLD}

        def make(name: str, ranks_of: Callable[[int], tuple[int, ...]]) -> Group:
            # Why all of them: every process has to take part in making every group, in one order.
            for ranks in sorted({ranks_of(r) for r in range(world)}):
                if len(ranks) > 1 and ranks not in made:
                    made[ranks] = dist.new_group(list(ranks))
            return Group(name, ranks_of(rank), rank, log, made.get(ranks_of(rank)))

        return cls(config, layout, rank, log, make)

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

    def whole(self, x: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """All tokens again: [num_tokens, hidden]."""
        return self.tensor.all_gather(x)[:num_tokens] if self.layout.sequence_parallel else x


MakeGroup = Callable[[str, Callable[[int], tuple[int, ...]]], Group]
