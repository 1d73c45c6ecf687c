"""Reads safetensors checkpoints: index, headers checked against the files, tensors as views of mapped files.

Layout of a file: a little-endian u64 with the length of a JSON header, the header (name -> dtype, shape,
offsets into what follows), the tensors' bytes.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import KeysView
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from mmx.errors import WeightsError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_LENGTH = struct.Struct("<Q")
_LFS_MAGIC = b"version https://git-lfs"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Entry(NamedTuple):
    """Where a tensor lies: bytes ``begin .. end`` of the file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of a folder, by name. Which file holds a tensor is read from the index alone, so stray
    files do no harm; a folder without index must hold one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: dict[str, mmap.mmap] = {}
        self._entries: dict[str, Entry] = {}
        self._unlisted: dict[str, str] = {}
        if (folder / INDEX_NAME).is_file():
            self._open_indexed(self._read_index(folder / INDEX_NAME))
        elif (folder / SINGLE_NAME).is_file():
            self._entries = self._open_file(SINGLE_NAME)
        else:
            raise WeightsError(f"{folder} must hold {INDEX_NAME} or {SINGLE_NAME}, it has neither")

    def names(self) -> KeysView[str]:
        return self._entries.keys()

    def entry(self, name: str) -> Entry:
        return self._entries[name]

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, as a view of the mapped file."""
        entry = self._entries[name]
        count = math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        data = torch.frombuffer(self._maps[entry.file], dtype=entry.dtype, count=count, offset=entry.begin)
        return data.view(entry.shape)

    def whereabouts(self, name: str) -> str:
        """For the message about a missing tensor: the file that holds it although the index does not say."""
        file = self._unlisted.get(name)
        return f"{INDEX_NAME} does not list it, though {file} holds it" if file else f"{self.folder} lacks it"

    def _open_indexed(self, weight_map: dict[str, str]) -> None:
        files = {file: self._open_file(file) for file in sorted(set(weight_map.values()))}
        for name, file in weight_map.items():
            if name not in files[file]:
                raise WeightsError(f"{file}: tensor {name} is missing, although {INDEX_NAME} places it there")
            self._entries[name] = files[file][name]
        for file, entries in files.items():
            self._unlisted.update(dict.fromkeys(entries.keys() - weight_map.keys(), file))

    def _read_index(self, path: Path) -> dict[str, str]:
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Index).weight_map
        except msgspec.DecodeError as error:
            raise WeightsError(f"{path} must be a JSON object with a weight_map: {error}") from None

    def _open_file(self, name: str) -> dict[str, Entry]:
        path = self.folder / name
        if Path(name).name != name or not path.is_file():
            raise WeightsError(f"{name} is missing in {self.folder}")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_LENGTH.size)
            if head + file.read(len(_LFS_MAGIC) - len(head)) == _LFS_MAGIC:
                raise WeightsError(
                    f"{name} is a Git LFS pointer, not the tensors: fetch it with `git lfs pull`"
                )
            header_length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            data_begin = _LENGTH.size + header_length
            if size < data_begin or header_length < 2:
                raise WeightsError(f"{name} is truncated: its header does not fit into its {size} bytes")
            file.seek(_LENGTH.size)
            header = file.read(header_length)
            # Why a private map: torch wants memory it may write to; nothing writes, no page is copied.
            self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            raw = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
            raw.pop("__metadata__", None)
            tensors = msgspec.convert(raw, type=dict[str, _HeaderEntry])
        except msgspec.DecodeError as error:
            raise WeightsError(f"{name}: the header is not that of a safetensors file: {error}") from None
        entries = {key: _entry(name, key, tensor, data_begin) for key, tensor in tensors.items()}
        end = max((entry.end for entry in entries.values()), default=data_begin)
        if size < end:
            raise WeightsError(f"{name} is truncated: its tensors need {end} bytes, the file has {size}")
        return entries


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _HeaderEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _entry(file: str, name: str, tensor: _HeaderEntry, data_begin: int) -> Entry:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise WeightsError(
            f"{file}: tensor {name} has dtype {tensor.dtype}, expected one of {', '.join(_DTYPES)}"
        )
    begin, end = tensor.data_offsets
    num_bytes = math.prod(tensor.shape) * dtype.itemsize
    if begin < 0 or min(tensor.shape, default=0) < 0 or end - begin != num_bytes:
        raise WeightsError(
            f"{file}: tensor {name} of shape {list(tensor.shape)} and dtype {tensor.dtype} needs {num_bytes} "
            f"bytes, its header gives it {begin} to {end}"
        )
    return Entry(file, dtype, tensor.shape, data_begin + begin, data_begin + end)
