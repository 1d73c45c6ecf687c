"""Full-width slices over the GPUs of one machine, teacher-forced, against one GPU: a rank of test_gpus.py.

Every tensor of a checkpoint is drawn from its own name, so that all layouts have the same weights.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from mmx import ops
from mmx.batch import ScheduledBatch, ScheduledSeq
from mmx.config import EngineConfig, ParallelConfig, SamplingParams
from mmx.distributed import CallLog, Ranks, connect
from mmx.distributed.peers import map_peers
from mmx.layout import make_layout
from mmx.model_config import ModelConfig, load_model_config
from mmx.runner import ModelRunner, build_runner
from mmx.runner.parts import Part
from mmx.runner.sampler import whole_rows
from mmx.weights.rules import pieces

TIMEOUT = 60.0
NUM_TOKENS = 2560
# Beyond 16 blocks of 128 tokens attention leaves some out.
LENGTHS = (1, 77, 300, 1000, 1500, 2100, 2300, 2500)


class Result(NamedTuple):
    """Log-probabilities [num_rows, vocab], of which rows 2 i and 2 i + 1 are behind prompt i and one token
    more, and the experts of each row in every layer."""

    rows: torch.Tensor
    experts: list[list[list[int]]]

    def same_experts(self, other: Result) -> torch.Tensor:
        pairs = zip(self.experts, other.experts, strict=True)
        return torch.tensor([one == two for one, two in pairs])


def fill(parameters: Mapping[str, torch.Tensor], config: ModelConfig, ranks: Ranks) -> None:
    for name, piece in pieces(config, ranks.share).items():
        target = parameters[piece.parameter]
        if piece.expert is not None:
            target = target[piece.expert]
        generator = torch.Generator("cuda").manual_seed(zlib.crc32(name.encode()))
        full = torch.empty(piece.shape, dtype=torch.bfloat16, device="cuda")
        if name.endswith("norm.weight"):
            full.uniform_(-0.2, 0.2, generator=generator).add_(0 if config.gemma else 1)
        else:
            std = {"bias": 0.05, "embed": 1.0}.get(
                next((w for w in ("bias", "embed") if w in name), ""), 0.02
            )
            full.normal_(0, std, generator=generator)
        for dim, span in enumerate((piece.rows, piece.cols)):
            if span is not None:
                full = full.narrow(dim, span[0], span[1] - span[0])
        target[piece.first_row : piece.first_row + piece.part_shape[0]].copy_(full)


class Machine:
    """One process per GPU, which run one layout after the other."""

    def __init__(self, rank: int, world: int, port: int, patch: pytest.MonkeyPatch) -> None:
        self.rank, self.world, self.patch = rank, world, patch
        self.device = torch.device("cuda", rank)
        torch.cuda.set_device(self.device)
        wait = timedelta(seconds=TIMEOUT)
        self.store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0, timeout=wait)
        dist.init_process_group(
            "nccl", store=self.store, rank=rank, world_size=world, timeout=wait, device_id=self.device
        )
        self.handles: Any = {}
        self.num_builds = 0

    def build(self, folder: Path, flags: dict[str, Any], dtype: str = "auto") -> ModelRunner:
        config = EngineConfig(
            model=str(folder),
            device="cuda",
            dtype=dtype,
            load_format="dummy",
            kv_cache_bytes=1 << 30,
            max_num_seqs=4,
            max_num_batched_tokens=NUM_TOKENS,
            max_model_len=NUM_TOKENS,
            enforce_eager=True,
            parallel=ParallelConfig(**flags),
        )
        model = load_model_config(folder)
        ranks = Ranks.alone(model)
        if flags:
            layout = make_layout(config.parallel, model)
            connect(layout, self.handles)
            ranks = Ranks(model, layout, self.rank, CallLog(), self.handles)
            self.num_builds += 1
            store = dist.PrefixStore(str(self.num_builds), self.store)
            group = layout.tensor_group(self.rank)
            if not layout.sequence_parallel:
                ranks.peers = map_peers(group, self.rank, model.hidden, self.device, store, TIMEOUT)  # type: ignore[arg-type]
        self.patch.setattr(
            "mmx.runner.runner.fill_random", lambda parameters, *_: fill(parameters, model, ranks)
        )
        return build_runner(config, lambda *_: None, ranks)

    def logits(self, runner: ModelRunner) -> Result | None:
        """Prompt by prompt, and one token behind each; None for a rank that samples nothing."""
        rows: list[torch.Tensor] = []
        experts: list[list[list[int]]] = []
        forward, choose, route = runner.forward, ops.moe_router_plan, ops.moe_router

        def keep_logits(part: Part) -> torch.Tensor:
            out = forward(part)
            if out.shape[0]:
                group = runner.ranks.tensor
                whole = out if group.size == 1 else whole_rows(out, group)
                rows.append(torch.log_softmax(whole.double(), 1).float())
            return out

        def keep_choice(function: Any) -> Any:
            def call(*arguments: Any) -> Any:
                result = function(*arguments)
                if len(result[0]):
                    last = result[0][-1]
                    experts[-1].append(last[last < runner.ranks.share.config.num_experts].sort()[0].tolist())
                return result

            return call

        with self.patch.context() as patch:
            patch.setattr(runner, "forward", keep_logits)
            patch.setattr(ops, "moe_router_plan", keep_choice(choose))
            patch.setattr(ops, "moe_router", keep_choice(route))
            for length in LENGTHS:
                rng = torch.Generator().manual_seed(length)
                ids = torch.randint(0, 200000, (length + 1,), generator=rng).tolist()
                for start, end in ((0, length), (length, length + 1)):
                    experts.append([])
                    seq = ScheduledSeq(
                        request_id="0",
                        token_ids=ids[start:end],
                        start=start,
                        block_ids=list(range(-(-end // 128))),
                        samples=True,
                        params=SamplingParams(temperature=0.0),
                        seed=0,
                        num_output_tokens=0,
                        num_prompt_tokens=length,
                    )
                    dp = runner.ranks.layout.dp
                    sizes = [1] + [0] * (dp - 1) if dp > 1 else []
                    runner.execute(ScheduledBatch(step=1, seqs=[seq], group_sizes=sizes))
        return Result(torch.cat(rows), experts) if rows else None


def check(machine: Machine, name: str, folder: Path, layouts: dict[str, dict[str, Any]]) -> None:
    """Rows whose experts are those in fp32 stay within twice what one GPU loses in bf16, the best token is
    the same where its lead is larger, and a repetition gives the same bits."""
    one, exact = (machine.logits(machine.build(folder, {}, dtype)) for dtype in ("auto", "float32"))
    assert one is not None and exact is not None
    torch.cuda.empty_cache()
    errors, kept = (one.rows - exact.rows).abs().amax(1).cpu(), one.same_experts(exact)
    budget = 2 * errors[kept].max().item()
    best = exact.rows.topk(2).values
    clear = (best[:, 0] - best[:, 1] > budget).cpu()
    if machine.rank == 0:
        print(
            json.dumps({"model": name, "one_gpu": budget / 2, "rows": len(kept), "flips": int((~kept).sum())})
        )
    failed = []
    for layout, flags in layouts.items():
        runner = machine.build(folder, flags)
        got, again = machine.logits(runner), machine.logits(runner)
        calls = {"/".join(key): count for key, count in runner.ranks.log.calls.items()}
        # Of ranks that compute a prompt together the last one has its end.
        speaks = machine.rank == 0 or runner.ranks.context.size > 1
        del runner
        torch.cuda.empty_cache()
        if got is None or again is None:
            continue
        errors, same = (got.rows - exact.rows).abs().amax(1).cpu(), got.same_experts(exact)
        equal = (got.rows.argmax(1) == exact.rows.argmax(1)).cpu()
        line = {
            "model": name,
            "layout": layout,
            "worst_of_budget": round(errors[same].max().item() / budget, 3),
            "flips": int((~same).sum()),
            "best_token_equal": f"{int(equal[clear & same].sum())} of {int((clear & same).sum())}",
            "best_token_equal_of_all": f"{int(equal.sum())} of {len(equal)}",
            "bit_equal": torch.equal(got.rows, again.rows),
            "calls": calls,
        }
        if speaks:
            print(json.dumps(line), flush=True)
        if line["worst_of_budget"] > 1 or not line["bit_equal"] or not equal[clear & same].all():
            failed.append(layout)
    assert not failed, f"{name}: {failed} are not what one GPU gives"
