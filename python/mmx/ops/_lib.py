"""Loads the op libraries and completes their registration: fakes for tracing, references as fallback."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmx import env

_LIBRARIES = {"CUDA": "libmmx_cuda.so", "PrivateUse1": "libmmx_ascend.so"}


def _library_dir() -> Path:
    override = env.library_dir()
    return Path(override) if override else Path(__file__).resolve().parent.parent


def _load() -> None:
    folder = _library_dir()
    ops = folder / "libmmx_ops.so"
    if not ops.exists():
        raise ImportError(f"mmx: {ops.name} is missing in {folder}; build it with `pip install .`")
    torch.ops.load_library(str(ops))
    for key, name in _LIBRARIES.items():
        path = folder / name
        if not path.exists():
            continue
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            # Why: a broken device library must not take the CPU down with it.
            warnings.warn(f"mmx: {name} could not be loaded, {key} has no kernels: {error}", stacklevel=2)


def op_names() -> list[str]:
    """Names of all ops of the library, without their workspace functions."""
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("mmx::") for s in schemas if s.name.startswith("mmx::")}
    return sorted(name for name in names if not name.endswith("_workspace"))


def has_kernel(op: str, key: str) -> bool:
    """Whether ``op`` has its own kernel under dispatch key ``key`` ("CPU", "CUDA", "PrivateUse1")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mmx::{op}", key)


def _missing_kernel(op: str, reference: Callable[..., None]) -> Callable[..., None]:
    warned: set[str] = set()

    def run(*args: Any) -> None:
        device = next(a.device.type for a in args if isinstance(a, torch.Tensor))
        if env.strict():
            raise RuntimeError(f"{op}: no kernel for device {device}, and MMX_STRICT forbids the reference")
        if device not in warned:
            warned.add(device)
            warnings.warn(f"mmx: {op} has no kernel for {device}; the slow reference runs", stacklevel=2)
        reference(*args)

    return run


def _complete() -> torch.library.Library:
    from mmx.ops._fallback import fallback

    library = torch.library.Library("mmx", "IMPL")
    for op in op_names():
        torch.library.register_fake(f"mmx::{op}", lambda *args: None, lib=library)
        library.impl(op, _missing_kernel(op, fallback(op)), "CompositeExplicitAutograd")
        if has_workspace(op):
            library.impl(f"{op}_workspace", lambda *args: 0, "CompositeExplicitAutograd")
    return library


def has_workspace(op: str) -> bool:
    """Whether ``op`` takes scratch sized by ``<op>_workspace``."""
    return hasattr(torch.ops.mmx, f"{op}_workspace")


def workspace(op: str, device: torch.device, *args: Any) -> torch.Tensor:
    """Scratch for a call of ``op`` with ``args``: int8 [workspace_bytes] on ``device``; empty on the CPU."""
    if device.type == "cpu":
        return _NO_WORKSPACE
    size = getattr(torch.ops.mmx, f"{op}_workspace")(*args)
    return torch.empty(size, dtype=torch.int8, device=device)


def call(op: str, tensors: Sequence[torch.Tensor | None], *rest: Any) -> None:
    """Run an op that takes scratch between its ``tensors``, an output first, and the ``rest``."""
    assert tensors[0] is not None
    scratch = workspace(op, tensors[0].device, *tensors, *rest)
    getattr(torch.ops.mmx, op)(*tensors, scratch, *rest)


_load()
_library = _complete()
_NO_WORKSPACE = torch.empty(0, dtype=torch.int8)
