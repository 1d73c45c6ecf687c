"""Every op has all its parts under one name: CPU kernel, wrapper, reference, cases, test and benchmark."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from mmx import ops
from mmx.ops import _lib, reference
from mmx.ops._fallback import _SEEN

ROOT = Path(__file__).resolve().parents[2]
FAMILY = {op: inspect.getmodule(getattr(ops, op)).__name__.rsplit(".", 1)[1] for op in _lib.op_names()}


def declared_ops() -> list[str]:
    text = (ROOT / "cpp" / "core" / "ops.h").read_text()
    block = text[text.index("#define MMX_OPS(X)") : text.index("#define MMX_WORKSPACE_OPS(X)")]
    return re.findall(r"X\((\w+), \w+\)", block)


def test_schema_and_list_agree() -> None:
    assert sorted(declared_ops()) == _lib.op_names()


@pytest.mark.parametrize("op", _lib.op_names())
def test_op_is_complete(op: str) -> None:
    family = FAMILY[op]
    assert _lib.has_kernel(op, "CPU"), f"{op} has no CPU kernel"
    assert (ROOT / "cpp" / "core" / "params" / f"{family}.h").exists()
    assert (ROOT / "cpp" / "ops" / f"{family}.h").exists()
    assert list((ROOT / "cpp" / "kernels").glob(f"{family}*.cpp")), f"no cpp/kernels/{family}*.cpp"
    assert inspect.getmodule(getattr(reference, op)).__name__ == f"mmx.ops.reference.{family}"
    assert re.search(rf"^{op},", (ROOT / "tests" / "cases" / f"{family}.csv").read_text(), re.MULTILINE)
    assert re.search(rf"def test_{op}\b", (ROOT / "tests" / "ops" / f"test_{family}.py").read_text())
    assert f"MMX_BENCH({op})" in (ROOT / "bench" / "ops" / f"bench_{family}.cpp").read_text()


@pytest.mark.parametrize("op", _lib.op_names())
def test_wrapper_and_reference_take_the_same_arguments(op: str) -> None:
    wrapper = [name for name in inspect.signature(getattr(ops, op)).parameters if name != "out"]
    assert wrapper == list(inspect.signature(getattr(reference, op)).parameters)


@pytest.mark.parametrize("op", _lib.op_names())
def test_fallback_knows_what_the_reference_takes(op: str) -> None:
    schema = getattr(torch.ops.mmx, op).default._schema
    given = {argument.name for argument in schema.arguments} | _SEEN.keys()
    assert inspect.signature(getattr(reference, op)).parameters.keys() <= given


def test_cuda_registers_what_it_declares() -> None:
    if not (_lib._library_dir() / "libmmx_cuda.so").exists():
        pytest.skip("built without a CUDA compiler")
    text = (ROOT / "cuda" / "kernels" / "launchers.h").read_text()
    block = text[text.index("#define MMX_CUDA_OPS(X)") : text.index("#define MMX_CUDA_WORKSPACE_OPS(X)")]
    declared = re.findall(r"X\((\w+), \w+\)", block)
    assert declared
    assert [op for op in _lib.op_names() if _lib.has_kernel(op, "CUDA")] == sorted(declared)
