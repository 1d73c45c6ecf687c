"""Checkpoints of other devices: w8a8-QuaRot against its fp32 original, fp8 multiplied out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmx.distributed import Ranks
from mmx.distributed.group import CallLog
from mmx.errors import ConfigError, WeightsError
from mmx.layout import Layout
from mmx.model_config import load_model_config
from mmx.models import build_model
from mmx.weights import load_weights
from models.harness import all_logits, greedy, random_ids, tiny_runner
from models.tiny import write_json, write_shards, write_tiny_checkpoint
from models.w8a8 import plain_tensors, rotated, write_w8a8
from unit.test_weights import dequantised

# Share of the logits' norm. Codes of 8 bits with a scale per row, over 3 (M2) or 5 (M3) random layers:
INT8_WEIGHTS = 0.04
# Rotation in fp64, stored in fp32:
FOLDED = 1e-4
# Every token takes every expert: near ties of the router would turn rounding into other experts.
ALL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 4}
M3_ALL = ALL_EXPERTS | {"sparse": {"sparse_topk_blocks": 64}}
FAMILIES = [("m2", ALL_EXPERTS), ("m3", M3_ALL)]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("family", "variant"), FAMILIES)
@pytest.mark.parametrize("static", [(), ("o_proj",), ("_proj",)], ids=["dynamic", "static_o", "static"])
def test_w8a8_quarot_matches_its_fp32_original(
    tmp_path: Path, family: str, variant: dict[str, object], static: tuple[str, ...]
) -> None:
    plain = write_tiny_checkpoint(tmp_path / "plain", family, variant=variant)
    int8 = write_w8a8(plain, tmp_path / "int8", static, gemma=family == "m3")
    ids = random_ids(90, seed=1)
    expected = all_logits(tiny_runner(plain), ids)
    runner = tiny_runner(int8)
    assert 1e-4 < distance(all_logits(runner, ids), expected) < INT8_WEIGHTS
    prompts = [random_ids(count, seed=count) for count in (3, 47)]
    assert greedy(runner, prompts, 8, chunk=7) == greedy(runner, prompts, 8)


@pytest.mark.parametrize(("family", "variant"), FAMILIES)
def test_a_folded_rotation_changes_nothing(tmp_path: Path, family: str, variant: dict[str, object]) -> None:
    plain = write_tiny_checkpoint(tmp_path / "plain", family, variant=variant)
    tensors, turn = rotated(plain_tensors(plain), gemma=family == "m3")
    assert (turn - torch.eye(len(turn))).norm() > 1
    folder = tmp_path / "rotated"
    folder.mkdir()
    write_json(folder / "config.json", json.loads((plain / "config.json").read_text()))
    write_shards(folder, tensors)
    ids = random_ids(90, seed=2)
    assert distance(all_logits(tiny_runner(folder), ids), all_logits(tiny_runner(plain), ids)) < FOLDED


def test_values_are_code_times_scale(tmp_path: Path) -> None:
    plain = write_tiny_checkpoint(tmp_path / "plain", "m2")
    int8 = write_w8a8(plain, tmp_path / "int8")
    stored, model = plain_tensors(int8), tiny_runner(int8).model
    for layer, attention in enumerate(model.layers):
        stem = f"model.layers.{layer}.self_attn"
        parts = [f"{stem}.{part}_proj.weight" for part in ("q", "k", "v")]
        expected = torch.cat([stored[part].float() * stored[f"{part}_scale"] for part in parts])
        assert torch.equal(attention.attention.qkv.weight, expected)
        output = stored[f"{stem}.o_proj.weight"].float() * stored[f"{stem}.o_proj.weight_scale"]
        assert torch.equal(attention.attention.o.weight, output)


def test_the_log_says_that_weights_are_widened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_w8a8(write_tiny_checkpoint(tmp_path / "plain", "m2"), tmp_path / "int8")
    fp8 = write_tiny_checkpoint(tmp_path / "fp8", "m2", torch.bfloat16, variant="fp8")
    with caplog.at_level("INFO", logger="mmx.engine"):
        tiny_runner(folder)
        tiny_runner(fp8)
        tiny_runner(fp8, dequantize_weights=True)
    said = [record.getMessage() for record in caplog.records if "widened" in record.getMessage()]
    assert said == [
        "the checkpoint's int8 weights are widened to float32",
        "the checkpoint's fp8 weights are widened to bfloat16",
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_part_of_int8_matrices(tmp_path: Path, rank: int) -> None:
    int8 = write_w8a8(write_tiny_checkpoint(tmp_path / "base", "m2"), tmp_path / "int8", ("_proj",))
    stored = plain_tensors(int8)
    widened = {
        name: tensor.float() * stored[f"{name}_scale"] if f"{name}_scale" in stored else tensor
        for name, tensor in stored.items()
        if name.endswith(("weight", "e_score_correction_bias"))
    }
    plain = tmp_path / "plain"
    plain.mkdir()
    write_json(plain / "config.json", json.loads((int8 / "config.json").read_text()))
    write_shards(plain, widened)

    def part(folder: Path) -> dict[str, torch.Tensor]:
        config = load_model_config(folder)
        ranks = Ranks(config, Layout(tp=2, moe_tp=2), rank, CallLog())
        model = build_model(config, torch.float32, ranks).to_empty(device="cpu")
        parameters = dict(model.named_parameters())
        load_weights(folder, config, parameters, lambda done: None, ranks.share)
        return parameters

    found, expected = part(int8), part(plain)
    assert expected["layers.0.attention.o.weight"].shape == (64, 32)
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name


def _weights_error(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        tiny_runner(folder)
    return str(caught.value)


O_PROJ = "model.layers.1.self_attn.o_proj"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("quant_bias", lambda t: t + 3, "but the model has no bias"),
        ("deq_scale", lambda t: t * 1.5, "deq_scale is not input_scale times weight_scale"),
        ("weight_offset", lambda t: t + 1, "offsets that are not 0"),
        ("weight", lambda t: t.float(), "must be I8 of shape [64, 64], got F32"),
        ("weight_scale", lambda t: t[1:], "must be F32 or BF16"),
        ("input_scale", None, f"tensor {O_PROJ}.input_scale is missing"),
    ],
)
def test_faults_of_a_static_matrix_are_named(tmp_path: Path, part: str, change: object, message: str) -> None:
    folder = write_w8a8(write_tiny_checkpoint(tmp_path / "plain", "m2"), tmp_path / "int8")
    tensors = plain_tensors(folder)
    if change is None:
        del tensors[f"{O_PROJ}.{part}"]
    else:
        tensors[f"{O_PROJ}.{part}"] = change(tensors[f"{O_PROJ}.{part}"])
    write_shards(folder, tensors)
    said = _weights_error(folder)
    assert message in said and O_PROJ in said


def test_faults_of_the_description_are_named(tmp_path: Path) -> None:
    folder = write_w8a8(write_tiny_checkpoint(tmp_path / "plain", "m2"), tmp_path / "int8")
    path = folder / "quant_model_description.json"
    description = json.loads(path.read_text())
    name = f"{O_PROJ}.weight"
    write_json(path, description | {name: "W4A8"})
    assert f"{name} must be FLOAT, W8A8 or W8A8_DYNAMIC, got 'W4A8'" in _weights_error(folder)
    write_json(path, description | {"kv_cache_type": "C8"})
    assert "kv_cache_type 'C8' can not be read yet" in _weights_error(folder)
    write_json(path, description | {name: "FLOAT"})
    assert "unexpected" in _weights_error(folder)
    path.write_text("[]")
    assert "must be a JSON object" in _weights_error(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"quantization_config": {"quant_method": "mxfp8"}})
    with pytest.raises(ConfigError, match="must not have quantization_config beside"):
        load_model_config(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_is_expanded_exactly_on_request(tmp_path: Path, dtype: str) -> None:
    folder = write_tiny_checkpoint(tmp_path / "fp8", "m2", torch.bfloat16, variant="fp8")
    plain = dequantised(folder, tmp_path / "plain")
    kept = tiny_runner(folder, dtype=dtype).model
    assert kept.layers[0].attention.qkv.weight.dtype == torch.float8_e4m3fn
    found = tiny_runner(folder, dtype=dtype, dequantize_weights=True)
    expected = tiny_runner(plain, dtype=dtype)
    parameters = dict(found.model.named_parameters())
    assert parameters.keys() == dict(expected.model.named_parameters()).keys()
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(parameters[name], parameter), name
    ids = random_ids(40, seed=3)
    assert torch.equal(all_logits(found, ids), all_logits(expected, ids))
