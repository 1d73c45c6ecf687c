"""M3 and M2.5 slices in full width over two to four GPUs against one: ``pytest -s`` shows the figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from parallel.gpu_program import Machine, check
from parallel.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
SLICES = {"M3": ("dense=1,sparse=3", 16), "M2.5": ("layers=3", 32)}  # and experts


def write(folder: Path, name: str) -> Path:
    """config.json of a slice in bf16 with few experts: its fp32 form shall fit as well."""
    sys.path.insert(0, str(ROOT / "bench"))
    from serve.slices import slice_config

    text, num_experts = SLICES[name]
    config = slice_config(text) | {"num_local_experts": num_experts}
    config.pop("quantization_config", None)
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    return folder / name


def layouts(world: int) -> dict[str, dict[str, Any]]:
    tensor = {"tensor_parallel_size": world}
    return {
        "TP": tensor,
        "TP, whole experts": tensor | {"expert_parallel": True},
        "attention DP, whole experts": tensor | {"expert_parallel": True, "attention_dp": True},
        "prefill CP, whole experts": {"prefill_context_parallel_size": world, "expert_parallel": True},
        "TP, sequence-parallel norms": tensor | {"sequence_parallel_norm": True},
    }


def run_rank(rank: int, world: int, port: int, folders: dict[str, Path]) -> None:
    torch.set_grad_enabled(False)
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(rank, world, port, patch)
        for name, folder in folders.items():
            check(machine, name, folder, layouts(world))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.cuda
def test_every_layout_gives_the_logits_of_one_gpu(tmp_path: Path) -> None:
    world = min(torch.cuda.device_count(), 4)
    if world < 2:
        pytest.skip("one GPU here")
    folders = {name: write(tmp_path, name) for name in SLICES}
    mp.spawn(run_rank, args=(world, free_port(), folders), nprocs=world)
