"""One of four gloo processes that go through many layouts: ``python -m parallel.program RANK FOLDER``.

Rank 0 drives the engine; steps reach the others by object broadcast. For every case rank 0 writes its tokens,
those of one rank alone, and what each rank held and called.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from engine.driving import tokens_of
from engine.test_overlap import play_graphs
from mmx.batch import ScheduledBatch
from mmx.config import EngineConfig, ParallelConfig, SamplingParams
from mmx.distributed import CallLog, Ranks, connect
from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.engine.null_runner import Done
from mmx.grammar.constraints import Masks
from mmx.layers import ForwardBatch
from mmx.layout import make_layout
from mmx.model_config import load_model_config
from mmx.protocol import Submit
from mmx.runner import ModelRunner, build_runner
from mmx.runner.parts import part_of
from models.harness import random_ids
from models.tiny import write_tiny_checkpoint
from parallel.layouts import CASES, Case, variant_of

WORLD = 4
NUM_TOKENS = 8
# Around page borders and, on M3, beyond topk blocks x block size = 32; chunks of 48 cut the long ones.
LENGTHS = (70, 3, 33, 9, 41)
MAX_BATCHED_TOKENS = 48


class SharedRunner:
    """The runner of rank 0: hands every step to the ranks of the layout and orders what they sample."""

    asynchronous = False

    def __init__(self, runner: ModelRunner, world: dist.ProcessGroup | None) -> None:
        self.runner = runner
        self._world = world
        for name in ("num_blocks", "block_size", "max_model_len", "max_model_len_reason", "vocab_size"):
            setattr(self, name, getattr(runner, name))
        self.eos_token_ids, self.family = runner.eos_token_ids, runner.family
        self.device, self.dtype = runner.device, runner.dtype

    def launch(self, batch: ScheduledBatch, masks: Masks) -> Done:
        dist.broadcast_object_list([msgspec.msgpack.encode(batch)], 0, group=self._world)
        gathered: list[Any] = [None] * self.runner.ranks.layout.world_size
        dist.gather_object(self.runner.execute(batch), gathered, 0, group=self._world)
        first = self.runner.ranks.layout.first_ranks()
        for rank, tokens in enumerate(gathered):
            leader = max(r for r in first if r <= rank)
            assert [t.token_id for t in tokens] == [t.token_id for t in gathered[leader]], "ranks disagree"
        results = {token.request_id: token for rank in first for token in gathered[rank]}
        return Done([results[seq.request_id] for seq in batch.seqs if seq.samples])


def generate(config: EngineConfig, runner: Any) -> dict[str, list[int]]:
    """Greedy tokens of all requests, submitted at once."""
    channel = LocalChannel()
    engine = Engine(config, runner, channel)
    for i, length in enumerate(LENGTHS):
        # One request samples with penalties: its logits are gathered whole.
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
        if i == 1:
            params = msgspec.structs.replace(
                params, temperature=0.8, seed=5, repetition_penalty=1.3, logprobs=2
            )
        channel.inbox.append(Submit(request_id=str(i), prompt_token_ids=random_ids(length, i), params=params))
    return tokens_of(engine, channel)


class Counting:
    """Counts the forward passes of a runner, those with tokens of its own, those that give logits, and how
    often tokens are drawn: in each graph, and behind a pass whose graph does not, because there is none or
    because somebody samples."""

    def __init__(self, runner: ModelRunner) -> None:
        self.forwards = self.busy = self.logits = self.samplings = 0
        forward, launch, ranks = runner.model.forward, runner.launch, runner.ranks

        def counted_forward(inputs: ForwardBatch) -> torch.Tensor:
            self.forwards += 1
            self.busy += bool(inputs.positions.shape[0])
            self.logits += bool(
                (inputs.positions if inputs.logit_rows is None else inputs.logit_rows).shape[0]
            )
            return forward(inputs)

        def counted_launch(batch: ScheduledBatch) -> Any:
            part = part_of(batch, ranks.layout, ranks.rank)
            seqs = [seq for seq in part.batch.seqs if seq.samples]
            graph = runner._graphs is not None and part.decode_rows is not None and not part.idle
            drawn = graph and all(seq.params.greedy for seq in seqs)
            self.samplings += graph + (bool(seqs) and not drawn)
            return launch(batch)

        runner.model.forward = counted_forward  # type: ignore[method-assign]
        runner.launch = counted_launch  # type: ignore[method-assign]


def run_case(case: Case, rank: int, folder: Path, handles: Any, alone: dict[str, list[int]]) -> Any:
    """One layout on its ranks; the report of all of them on rank 0."""
    config = engine_config(folder, ParallelConfig(**case.flags))
    model = load_model_config(folder)
    layout = make_layout(config.parallel, model)
    connect(layout, handles)
    world = handles[tuple(range(layout.world_size))]
    if rank >= layout.world_size:
        return None
    ranks = Ranks(model, layout, rank, CallLog(), handles)
    runner = build_runner(config, lambda phase, done: None, ranks)
    if case.graphs:
        play_graphs(runner)
    counting = Counting(runner)
    tokens: dict[str, list[int]] = {}
    if rank == 0:
        tokens = generate(config, SharedRunner(runner, world))
        dist.broadcast_object_list([None], 0, group=world)
    else:
        follow(runner, world)
    parameters = list(runner.model.parameters())
    pages = [t for cache in runner._caches for t in cache if t is not None]
    report = {
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "page_bytes": sum(t.numel() * t.element_size() for t in pages) // runner.num_blocks,
        "calls": {"/".join(name): count for name, count in ranks.log.calls.items()},
        "forwards": counting.forwards,
        "busy": counting.busy,
        "logits": counting.logits,
        "samplings": counting.samplings,
    }
    gathered: list[Any] = [None] * layout.world_size
    dist.gather_object(report, gathered if rank == 0 else None, 0, group=world)
    return {"tokens": tokens, "alone": alone, "ranks": gathered} if rank == 0 else None


def follow(runner: ModelRunner, world: Any) -> None:
    while True:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, 0, group=world)
        if box[0] is None:
            return
        batch = msgspec.msgpack.decode(box[0], type=ScheduledBatch)
        dist.gather_object(runner.execute(batch), None, 0, group=world)


def engine_config(folder: Path, parallel: ParallelConfig) -> EngineConfig:
    return EngineConfig(
        model=str(folder),
        device="cpu",
        kv_cache_bytes=1 << 24,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        parallel=parallel,
    )


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    models: dict[tuple[str, str], Path] = {}
    alone: dict[tuple[str, str], dict[str, list[int]]] = {}
    handles: Any = {}
    for name, case in CASES.items():
        key = (case.family, case.variant)
        if key not in models:
            models[key] = folder / "-".join(key)
            if rank == 0:
                write_tiny_checkpoint(models[key], case.family, variant=variant_of(case), seed=3)
                config = engine_config(models[key], ParallelConfig())
                alone[key] = generate(config, build_runner(config, lambda phase, done: None))
            dist.barrier()
        begin = time.perf_counter()
        report = run_case(case, rank, models[key], handles, alone.get(key, {}))
        if report is not None:
            report["seconds"] = time.perf_counter() - begin
            (folder / f"{name}.json").write_bytes(msgspec.json.encode(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
