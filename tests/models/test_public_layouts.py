"""Checkpoints in the layouts of the published ones, loaded to the CPU and, in streams, to a GPU."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmx import LLM, SamplingParams, ops
from mmx.model_config import load_model_config
from mmx.models import build_model
from mmx.ops import _lib, reference
from mmx.weights import load_weights, stage
from models.harness import all_logits, random_ids, tiny_runner
from models.tiny import write_json, write_tiny_checkpoint
from unit.test_weights import dequantised

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
INDEX = "model.safetensors.index.json"
FP8_OPS = ("fp8_linear", "fp8_moe_down", "fp8_moe_gate_up", "fp8_quantize")
NUM_SHARDS = 5
# Several scale blocks in each matrix, query heads wider than the model. Every token takes every expert: near
# ties of the router would turn rounding into other experts.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "head_dim": 128,
    "rotary_dim": 64,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "num_local_experts": 4,
    "num_experts_per_tok": 4,
}
M2 = SHAPE | {"num_attention_heads": 6, "fp8": True}
M3 = SHAPE | {
    "num_attention_heads": 16,
    "dense_intermediate_size": 512,
    "shared_intermediate_size": 384,
    "dense_layers": 3,
    "sparse": {"sparse_topk_blocks": 2, "sparse_block_size": 128},
}
IDS = random_ids(400, seed=1)


def deal_out(folder: Path) -> Path:
    """The tensors in ``NUM_SHARDS`` files, dealt out in turn, so that what is merged, and a matrix and its
    scales, come from different ones."""
    index = json.loads((folder / INDEX).read_text())
    tensors: dict[str, torch.Tensor] = {}
    for file in set(index["weight_map"].values()):
        tensors |= load_file(folder / file)
        (folder / file).unlink()
    for name, place in zip(sorted(tensors), count()):
        index["weight_map"][name] = f"model-{place % NUM_SHARDS:05d}-of-{NUM_SHARDS:05d}.safetensors"
    for file in set(index["weight_map"].values()):
        here = [name for name in tensors if index["weight_map"][name] == file]
        save_file({name: tensors[name] for name in here}, folder / file, metadata={"format": "pt"})
    write_json(folder / INDEX, index)
    return folder


@pytest.fixture(scope="module")
def m2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deal_out(write_tiny_checkpoint(tmp_path_factory.mktemp("m2"), "m2", torch.bfloat16, variant=M2))


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deal_out(write_tiny_checkpoint(tmp_path_factory.mktemp("m3"), "m3", torch.bfloat16, variant=M3))


@pytest.fixture(params=["m2", "m3"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.cuda
def test_what_is_streamed_to_the_device_is_what_the_cpu_reads(folder: Path) -> None:
    on_cpu, on_gpu = (
        dict(tiny_runner(folder, device=device).model.named_parameters()) for device in ("cpu", "cuda")
    )
    assert on_cpu.keys() == on_gpu.keys()
    for name, parameter in on_cpu.items():
        assert on_gpu[name].device.type == "cuda"
        assert on_gpu[name].dtype == parameter.dtype, name
        bits = [tensor.cpu().contiguous().view(torch.uint8) for tensor in (parameter, on_gpu[name])]
        assert torch.equal(*bits), name


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_layout_gives_the_logits_of_its_values(
    m2: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice the error of exact sums of rows rounded alike."""
    again = write_tiny_checkpoint(tmp_path / "again", "m2", torch.bfloat16, variant=M2)
    exact = all_logits(tiny_runner(dequantised(again, tmp_path / "plain"), dtype="float32"), IDS)
    runner = tiny_runner(m2, device=device)
    assert runner.dtype == "bfloat16"
    found = all_logits(runner, IDS).cpu()
    for op in FP8_OPS:
        monkeypatch.setattr(ops, op, getattr(reference, op))
    same_precision = all_logits(tiny_runner(m2), IDS)
    error = (found - exact).norm()
    assert 1e-3 * exact.norm() < error < 2 * (same_precision - exact).norm()


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_layout_gives_the_logits_of_fp32(m3: Path, device: str) -> None:
    exact = all_logits(tiny_runner(m3, dtype="float32"), IDS)
    same_precision = all_logits(tiny_runner(m3), IDS)
    found = all_logits(tiny_runner(m3, device=device), IDS).cpu()
    assert (found - exact).norm() <= 2 * (same_precision - exact).norm()


@pytest.mark.parametrize("device", DEVICES)
def test_both_are_served(folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op by its kernel; a second engine gives the same."""
    monkeypatch.setenv("MMX_STRICT", "1")
    prompts = [random_ids(n, seed=n) for n in (5, 129, 300)]
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    found = []
    for _ in range(2):
        llm = LLM(str(folder), device=device, skip_tokenizer_init=True, kv_cache_bytes=1 << 25)
        found.append([out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)])
    assert found[0] == found[1]
    assert len({tuple(tokens) for tokens in found[0]}) == len(prompts)


# ---- without kernels --------------------------------------------------------------------------------


def test_strict_forbids_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _lib._missing_kernel("rms_norm", lambda *args: None)
    monkeypatch.setenv("MMX_STRICT", "0")
    with pytest.warns(UserWarning, match="rms_norm has no kernel for cpu; the slow reference runs"):
        run(torch.ones(1))
    monkeypatch.setenv("MMX_STRICT", "1")
    with pytest.raises(RuntimeError, match="rms_norm: no kernel for device cpu, and MMX_STRICT forbids"):
        run(torch.ones(1))


@pytest.mark.cuda
def test_strict_without_the_device_library_serves_nothing(m2: Path, tmp_path: Path) -> None:
    (tmp_path / "libmmx_ops.so").symlink_to(_lib._library_dir() / "libmmx_ops.so")
    program = "import sys, mmx; mmx.LLM(sys.argv[1], device='cuda', skip_tokenizer_init=True)"
    env = os.environ | {"MMX_LIBRARY_DIR": str(tmp_path), "MMX_STRICT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(m2)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no kernel for device cuda, and MMX_STRICT forbids the reference" in done.stderr


# ---- memory of the host -----------------------------------------------------------------------------


def held_bytes() -> int:
    """Memory of this process that no file stands behind: pages of mapped checkpoints are not in it."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) << 10


@pytest.mark.parametrize(
    ("device", "most"), [("cpu", 1.25), pytest.param("cuda", 0.5, marks=pytest.mark.cuda)]
)
def test_the_host_never_holds_the_model_twice(
    m2: Path, tmp_path: Path, device: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU holds the parameters, the host of a GPU only the buffers of the lanes."""
    monkeypatch.setitem(stage.copy_all.__kwdefaults__, "lane_bytes", 1 << 20)
    experts = SHAPE | {"num_attention_heads": 6, "num_local_experts": 60}
    large = write_tiny_checkpoint(tmp_path / "large", "m2", torch.bfloat16, variant=experts)
    size = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    assert size > 100e6
    load(m2, device)  # takes what the device and its streams need once
    before = held_bytes()
    held = load(large, device)
    assert len(held) > 50
    assert max(held) - before < most * size


def load(folder: Path, device: str) -> list[int]:
    """What was held, seen once per percent."""
    config, held = load_model_config(folder), []
    model = build_model(config, torch.bfloat16).to_empty(device=device)
    load_weights(folder, config, dict(model.named_parameters()), lambda _: held.append(held_bytes()))
    gc.collect()
    return held
