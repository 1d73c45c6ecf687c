"""Checkpoint loading: values, conversions, and every fault of a folder in one sentence."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmx.errors import WeightsError
from mmx.model_config import load_model_config, parse_model_config
from mmx.models import build_model
from mmx.weights import Checkpoint, fill_random, load_weights
from mmx.weights.rules import pieces
from models import tiny
from unit.test_model_config import M2, M3

INDEX = "model.safetensors.index.json"
FIRST, LAST = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
GATE = "model.layers.1.block_sparse_moe.gate.weight"


def load(
    folder: Path, dtype: torch.dtype = torch.float32, progress: Callable[[float], None] = lambda done: None
) -> dict[str, torch.Tensor]:
    config = load_model_config(folder)
    model = build_model(config, dtype).to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.fill_(float("nan"))
    load_weights(folder, config, parameters, progress)
    return parameters


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / FIRST) | load_file(folder / LAST)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_tiny_checkpoint(tmp_path / "model", "m3")


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = all_tensors(folder)
    change(tensors)
    tiny.write_shards(folder, tensors)


def test_every_element_is_filled_from_its_tensor(folder: Path) -> None:
    parameters, stored = load(folder), all_tensors(folder)
    assert not any(parameter.isnan().any() for parameter in parameters.values())
    attention = "model.layers.1.self_attn."
    merged = [stored[f"{attention}{part}_proj.weight"] for part in ("q", "k", "index_q", "index_k", "v")]
    assert torch.equal(parameters["layers.1.attention.qkv.weight"], torch.cat(merged))
    expert = "model.layers.2.block_sparse_moe.experts.3."
    gate_up = torch.cat([stored[expert + "w1.weight"], stored[expert + "w3.weight"]])
    assert torch.equal(parameters["layers.2.mlp.experts.gate_up"][3], gate_up)
    assert torch.equal(parameters["layers.2.mlp.experts.down"][3], stored[expert + "w2.weight"])
    assert torch.equal(parameters["lm_head.weight"], stored["lm_head.weight"])


def test_router_stays_fp32(folder: Path) -> None:
    parameters = load(folder, torch.bfloat16)
    wide = {name for name, parameter in parameters.items() if parameter.dtype == torch.float32}
    assert wide == {f"layers.{i}.mlp.gate.{kind}" for i in range(1, 5) for kind in ("weight", "bias")}


def test_single_file_without_index(folder: Path) -> None:
    expected = load(folder)
    save_file(all_tensors(folder), folder / "model.safetensors")
    for name in (INDEX, FIRST, LAST):
        (folder / name).unlink()
    loaded = load(folder)
    assert all(torch.equal(loaded[name], parameter) for name, parameter in expected.items())


def test_multimodal_checkpoint_loads_as_its_text_part(folder: Path, tmp_path: Path) -> None:
    wrapped = tiny.write_tiny_checkpoint(tmp_path / "wrapped", "m3", variant="multimodal")
    loaded = load(wrapped)
    assert all(torch.equal(loaded[name], parameter) for name, parameter in load(folder).items())


# Parts that cut through scale blocks when they are merged: the parameters are not e4m3.
CUT_BLOCKS: dict[str, Any] = {"num_key_value_heads": 1, "intermediate_size": 64}


def dequantised(quantised: Path, folder: Path) -> Path:
    """The checkpoint with every matrix multiplied out, in ``folder``."""
    stored = all_tensors(quantised)
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(name + "_scale_inv")
        if scale is not None:
            rows, cols = tensor.shape
            blocks = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
            tensor = tensor.float() * blocks
        plain[name] = tensor
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    folder.mkdir()
    tiny.write_json(folder / "config.json", config)
    tiny.write_shards(folder, plain)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_blocks_load_as_their_dequantised_values(dtype: torch.dtype, tmp_path: Path) -> None:
    variant = tiny.VARIANTS["fp8"] | CUT_BLOCKS
    quantised = tiny.write_tiny_checkpoint(tmp_path / "fp8", "m2", torch.bfloat16, variant=variant)
    stored = all_tensors(quantised)
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in stored.values()) == 3 * (4 + 8 * 3)
    expected = load(dequantised(quantised, tmp_path / "plain"), dtype)
    for name, parameter in load(quantised, dtype).items():
        assert torch.equal(parameter, expected[name]), name


def test_fp8_blocks_stay_codes_and_scales(tmp_path: Path) -> None:
    quantised = tiny.write_tiny_checkpoint(tmp_path / "fp8", "m2", torch.bfloat16, variant="fp8")
    parameters, stored = load(quantised, torch.bfloat16), all_tensors(quantised)

    def same(ours: torch.Tensor, theirs: list[str]) -> bool:
        return torch.equal(ours.view(torch.uint8), torch.cat([stored[n].view(torch.uint8) for n in theirs]))

    heads = [f"model.layers.1.self_attn.{part}_proj.weight" for part in ("q", "k", "v")]
    assert same(parameters["layers.1.attention.qkv.weight"], heads)
    scales = [f"{name}_scale_inv" for name in heads]
    assert same(parameters["layers.1.attention.qkv.weight_scale"], scales)
    expert = "model.layers.2.block_sparse_moe.experts.3."
    gate_up = [f"{expert}{part}.weight" for part in ("w1", "w3")]
    assert same(parameters["layers.2.mlp.experts.gate_up"][3], gate_up)
    assert same(parameters["layers.2.mlp.experts.gate_up_scale"][3], [f"{n}_scale_inv" for n in gate_up])
    assert same(parameters["layers.2.mlp.experts.down_scale"][3], [f"{expert}w2.weight_scale_inv"])
    wide = {p.dtype for name, p in parameters.items() if "experts" not in name and "attention" not in name}
    assert wide == {torch.bfloat16, torch.float32}


WHOLE_GROUPS: dict[str, Any] = {"shared_intermediate_size": 64}


def to_mxfp8(folder: Path) -> dict[str, torch.Tensor]:
    """Rewrites the matrices with a power of two per 32 columns; returns the values."""
    config = json.loads((folder / "config.json").read_text())
    tiny.write_json(folder / "config.json", config | {"quantization_config": {"quant_method": "mxfp8"}})
    values = {}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if not name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight")):
                continue
            rows, cols = tensors[name].shape
            groups = tensors[name].float().view(rows, cols // 32, 32)
            exponent = groups.abs().amax(-1).log2().floor().int() - 7
            codes = (groups / torch.exp2(exponent.float())[..., None]).to(torch.float8_e4m3fn)
            values[name] = (codes.float() * torch.exp2(exponent.float())[..., None]).view(rows, cols)
            tensors[name] = codes.view(rows, cols)
            tensors[f"{name}_scale"] = (exponent + 127).to(torch.uint8)

    edit_tensors(folder, change)
    return values


def test_mxfp8_loads_as_its_values(tmp_path: Path) -> None:
    folder = tiny.write_tiny_checkpoint(tmp_path / "model", "m3", variant=WHOLE_GROUPS)
    values = to_mxfp8(folder)
    parameters = load(folder)
    assert torch.equal(
        parameters["layers.1.attention.o.weight"], values["model.layers.1.self_attn.o_proj.weight"]
    )
    expert = "model.layers.2.block_sparse_moe.experts.3."
    gate_up = torch.cat([values[expert + "w1.weight"], values[expert + "w3.weight"]])
    assert torch.equal(parameters["layers.2.mlp.experts.gate_up"][3], gate_up)


def test_mxfp8_scale_of_wrong_shape(tmp_path: Path) -> None:
    folder = tiny.write_tiny_checkpoint(tmp_path / "model", "m3", variant=WHOLE_GROUPS)
    to_mxfp8(folder)
    name = "model.layers.0.self_attn.o_proj.weight_scale"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:, :1].contiguous()}))
    refused(folder, rf"tensor {name} in .* must be U8 of shape \[64, 4\], got U8 of \[64, 1\]")


def test_matrix_that_is_not_fp8_although_the_config_says_so(tmp_path: Path) -> None:
    folder = tiny.write_tiny_checkpoint(tmp_path, "m2", variant="fp8")
    name = "model.layers.0.self_attn.o_proj.weight"

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].bfloat16()
        del tensors[name + "_scale_inv"]

    edit_tensors(folder, widen)
    refused(folder, f"tensor {name} in .* must be F8_E4M3 with {name}_scale_inv, as quantization_config says")


def test_progress_rises_to_one(folder: Path) -> None:
    seen: list[float] = []
    load(folder, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) <= 101


def test_stray_files_are_not_read(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"junk")
    load(folder)


def test_tensor_counts_of_the_published_models() -> None:
    m2 = pieces(parse_model_config(M2))
    assert len(m2) + sum(piece.matrix for piece in m2.values()) == 96103  # each matrix has a scale
    assert len(pieces(parse_model_config(M3))) == 22893


# ---- faults ---------------------------------------------------------------------------------------


def refused(folder: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_truncated_shard(folder: Path) -> None:
    os.truncate(folder / LAST, (folder / LAST).stat().st_size - 5)
    refused(folder, rf"{LAST} \(\d+ bytes\) is truncated or no safetensors file: .* not fully covered")


@pytest.mark.parametrize("size", [0, 4, 8, 100])
def test_shard_truncated_in_its_header(size: int, folder: Path) -> None:
    os.truncate(folder / FIRST, size)
    refused(folder, rf"{FIRST} \({size} bytes\) is truncated or no safetensors file: .* header")


def test_lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4294967296\n"
    (folder / FIRST).write_text(text)
    refused(folder, f"{FIRST} is a Git LFS pointer, not the tensors: fetch it with `git lfs pull`")


def test_missing_shard(folder: Path) -> None:
    (folder / LAST).unlink()
    refused(folder, f"{LAST} is missing in ")


def test_missing_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(GATE))
    refused(folder, rf"tensor {GATE} is missing: .*model lacks it \(1 missing in all\)")


def test_missing_index_entry(folder: Path) -> None:
    edit_index(folder, lambda weight_map: weight_map.pop(GATE))
    refused(folder, f"tensor {GATE} is missing: {INDEX} does not list it, though .* holds it")


def test_index_entry_without_tensor(folder: Path) -> None:
    edit_index(folder, lambda weight_map: weight_map.update({"ghost.weight": FIRST}))
    refused(folder, f"{FIRST}: tensor ghost.weight is missing, although {INDEX} places it there")


def test_unexpected_tensor(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(4)}))
    refused(folder, rf"tensor {name} in .* is unexpected: .* \(1 unexpected in all\)")


def test_wrong_shape(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({GATE: torch.zeros(8, 60)}))
    refused(folder, rf"tensor {GATE} in .* must have shape \[8, 64\], got \[8, 60\]")


def test_wrong_dtype(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({GATE: torch.zeros(8, 64, dtype=torch.int64)}))
    refused(folder, rf"tensor {GATE} in .* must be BF16 or F16 or F32, got I64")


def test_fp8_without_scale(folder: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    refused(folder, f"tensor {name} in .* is fp8 and needs {name}_scale_inv")


def test_fp8_scale_of_wrong_shape(tmp_path: Path) -> None:
    folder = tiny.write_tiny_checkpoint(tmp_path, "m2", variant="fp8")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    refused(folder, rf"tensor {name} in .* must be F32 of shape \[1, 2\], got F32 of \[2, 2\]")


def test_folder_without_weights(folder: Path) -> None:
    (folder / INDEX).unlink()
    refused(folder, f"must hold {INDEX} or model.safetensors, it has neither")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"\xff": "a"}}'])
def test_broken_index(content: str, folder: Path) -> None:
    (folder / INDEX).write_bytes(content.encode("latin-1"))
    refused(folder, f"{INDEX} must be a JSON object with a weight_map")


def test_index_names_a_file_outside_the_folder(folder: Path) -> None:
    edit_index(folder, lambda weight_map: weight_map.update({GATE: "../secret.safetensors"}))
    refused(folder, r"\.\./secret.safetensors is missing in ")


def write_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path.parent


def header_of(**changes: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}).encode()


BROKEN = r"model.safetensors \(\d+ bytes\) is truncated or no safetensors file: \w+"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json at all", BROKEN),
        (b'{"a": 1}', BROKEN),
        (header_of(shape="x"), BROKEN),
        (header_of(dtype="F8_E8M0", shape=[8]), "tensor a has dtype F8_E8M0, expected one of F64, I64"),
        (header_of(data_offsets=[0, 4]), BROKEN),
        (header_of(data_offsets=[-8, 0]), BROKEN),
        (header_of(shape=[-2]), BROKEN),
        (header_of(data_offsets=[8, 16]), BROKEN),
    ],
)
def test_broken_header(header: bytes, message: str, tmp_path: Path) -> None:
    folder = write_file(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(WeightsError, match=message):
        Checkpoint(folder)


# ---- reader and dummy -----------------------------------------------------------------------------


def test_reader_gives_what_was_written(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool)
    tensors = {str(dtype): torch.arange(3).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names() == tensors.keys()
    for name, tensor in tensors.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert torch.equal(read.view(torch.uint8) if read.dim() else read, _bytes(tensor))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dim() else tensor


@pytest.mark.parametrize(("family", "neutral"), [("m2", 1.0), ("m3", 0.0)])
def test_random_weights(family: str, neutral: float, tmp_path: Path) -> None:
    config = load_model_config(tiny.write_tiny_checkpoint(tmp_path, family))

    def filled(seed: int) -> dict[str, torch.Tensor]:
        parameters = dict(build_model(config, torch.float32).to_empty(device="cpu").named_parameters())
        fill_random(parameters, seed, config.gemma)
        return parameters

    first, again, other = filled(1), filled(1), filled(2)
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        if name.endswith("norm.weight"):
            assert (parameter == neutral).all()
        elif name.endswith(".bias"):
            assert (parameter == 0).all()
        else:
            assert not torch.equal(parameter, other[name])
            assert abs(float(parameter.std()) - 0.02) < 0.003
    assert not torch.equal(first["layers.0.attention.o.weight"], first["layers.1.attention.o.weight"])


def test_random_fp8_weights(tmp_path: Path) -> None:
    config = load_model_config(tiny.write_tiny_checkpoint(tmp_path, "m2", variant="fp8"))
    parameters = dict(build_model(config, torch.bfloat16).to_empty(device="cpu").named_parameters())
    fill_random(parameters, 1, config.gemma)
    for name in ("layers.0.attention.qkv.weight", "layers.1.mlp.experts.gate_up"):
        codes, scale = parameters[name].float(), parameters[f"{name}_scale"]
        assert codes.isfinite().all()
        assert abs(float(codes.std() * scale.flatten()[0]) - 0.02) < 0.001
