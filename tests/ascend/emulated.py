"""The AscendC kernels on the host emulator, called with the ops' own Params.

The structs are read from ``cpp/core/params/*.h``, so a field that is added there needs nothing here.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float8_e4m3fn: 2,
    torch.uint8: 3,
    torch.int8: 4,
    torch.int32: 5,
    torch.int64: 6,
}
C_TYPES: dict[str, Any] = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
    "DType": ctypes.c_int32,
    "Activation": ctypes.c_int64,
}


@dataclass(frozen=True)
class Chip:
    """What a launch may use, and the rates of the time model."""

    name: str = "910B2"
    num_aic: int = 24
    mhz: float = 1800
    hbm_bytes_per_second: float = 1.6e12

    @property
    def flops(self) -> float:
        """bf16 multiply-adds of the cube, counted as two."""
        return self.num_aic * 8192 * self.mhz * 1e6


CHIPS = (Chip(), Chip("910C die", mhz=1850))


class ViolationError(AssertionError):
    """A check of the emulator did not hold."""


class RefusedError(ValueError):
    """The kernel does not take such Params; the text says why."""


@dataclass
class Pointer:
    """An address without memory, for runs that only count time."""

    bytes: int
    address: int = 0


@dataclass
class Struct:
    cls: type[ctypes.Structure]
    pointers: dict[str, bool] = field(default_factory=dict)  # name -> written by the op


def parse_structs() -> dict[str, Struct]:
    structs: dict[str, Struct] = {}
    for header in sorted((ROOT / "cpp" / "core" / "params").glob("*.h")):
        text = re.sub(r"//[^\n]*", "", header.read_text())
        for name, body in re.findall(r"struct (\w+Params) \{(.*?)\n\};", text, re.DOTALL):
            if re.search(r"\bPeers peers;", body):  # no Ascend kernel sends rows to other ranks
                continue
            fields: list[tuple[str, Any]] = []
            pointers: dict[str, bool] = {}
            for statement in filter(None, (s.strip() for s in body.split(";"))):
                match = re.fullmatch(r"(const )?(\w+)\s*(.*)", statement, re.DOTALL)
                assert match, f"{header.name}: {statement!r}"
                const, kind, names = match.groups()
                for declared in (n.strip() for n in names.split(",")):
                    if kind in structs:
                        fields.append((declared, structs[kind].cls))
                    elif declared.startswith("*"):
                        pointers[declared[1:].strip()] = not const
                        fields.append((declared[1:].strip(), ctypes.c_void_p))
                    else:
                        fields.append((declared, C_TYPES[kind]))
            cls = type(name, (ctypes.Structure,), {"_fields_": fields})
            structs[name] = Struct(cls, pointers)
    return structs


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("kind", ctypes.c_int32),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("schedule", ctypes.c_int32),
        ("num_aic", ctypes.c_int32),
        ("num_aiv", ctypes.c_int32),
        ("dry", ctypes.c_int32),
        ("mhz", ctypes.c_double),
        ("hbm_bytes_per_second", ctypes.c_double),
        ("mutant", ctypes.c_char_p),
    )


def library_path() -> Path:
    return Path(os.environ.get("MMX_ASCEND_EMULATED", ROOT / "build" / "cpp" / "libmmx_ascend_emulated.so"))


class Emulator:
    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SystemExit(f"the emulator is not built: {path} is missing (docs/ascend.md has the command)")
        self.lib = ctypes.CDLL(str(path))
        self.lib.mmx_emulated_run.restype = ctypes.c_char_p
        self.lib.mmx_emulated_ops.restype = ctypes.c_char_p
        self.lib.mmx_emulated_workspace.restype = ctypes.c_int64
        self.structs = parse_structs()
        self.ops: list[str] = self.lib.mmx_emulated_ops().decode().split()
        self.runs = 0
        self.fake_address = 1 << 60

    def params(
        self, name: str, values: Mapping[str, Any]
    ) -> tuple[ctypes.Structure, dict[str, tuple[Any, bool]]]:
        """A filled struct and its tensors: field -> (tensor or Pointer, written)."""
        struct = self.structs[name]
        filled = struct.cls()
        tensors: dict[str, tuple[Any, bool]] = {}
        for key, value in values.items():
            if isinstance(value, Mapping):
                inner_name = type(getattr(filled, key)).__name__
                inner, inner_tensors = self.params(inner_name, value)
                setattr(filled, key, inner)
                tensors |= inner_tensors
            elif isinstance(value, torch.Tensor):
                tensors[key] = (value, struct.pointers[key])
                setattr(filled, key, value.data_ptr())
            elif isinstance(value, Pointer):
                tensors[key] = (value, struct.pointers[key])
                setattr(filled, key, self.fake_address)
                value.address = self.fake_address
                self.fake_address += (value.bytes // 4096 + 2) * 4096
            elif isinstance(value, torch.dtype):
                setattr(filled, key, DTYPES[value])
            else:
                setattr(filled, key, value)
        return filled, tensors

    def run(
        self,
        op: str,
        params: str,
        values: Mapping[str, Any],
        *,
        chip: Chip = CHIPS[0],
        schedule: int = 0,
        mutant: str = "",
        dry: bool = False,
    ) -> dict[str, Any]:
        """Runs ``op``; returns the report. Raises ViolationError or RefusedError."""
        values = dict(values)
        filled, tensors = self.params(params, values)
        size = self.lib.mmx_emulated_workspace(op.encode(), ctypes.byref(filled), chip.num_aic)
        if size:
            holder = values.get("base", values)
            scratch: Any = Pointer(size) if dry else torch.full((size,), 0xCC, dtype=torch.uint8)
            place = {"workspace": scratch, "workspace_bytes": size}
            if "base" in values:
                values["base"] = {**holder, **place}
            else:
                values.update(place)
            filled, tensors = self.params(params, values)
        regions: dict[int, list[Any]] = {}
        for name, (tensor, written) in tensors.items():
            kind = 2 if name == "workspace" else int(written)
            if isinstance(tensor, Pointer):
                regions[tensor.address] = [name, tensor.bytes, kind | 4]
                continue
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0:
                continue
            known = regions.setdefault(storage.data_ptr(), [name, storage.nbytes(), kind])
            known[2] = max(known[2], kind)
        array = (_Tensor * max(1, len(regions)))(
            *(_Tensor(name.encode(), base, size, kind) for base, (name, size, kind) in regions.items())
        )
        options = _Options(
            schedule,
            chip.num_aic,
            2 * chip.num_aic,
            dry,
            chip.mhz,
            chip.hbm_bytes_per_second,
            mutant.encode(),
        )
        answer = self.lib.mmx_emulated_run(
            op.encode(), ctypes.byref(filled), array, len(regions), ctypes.byref(options)
        )
        report: dict[str, Any] = json.loads(answer)
        if "refused" in report:
            raise RefusedError(report["refused"])
        self.runs += 1
        if report["violation"]:
            raise ViolationError(f"{op}: {report['violation']}")
        return report
