"""Reads safetensors checkpoints: which file holds which tensor, tensors as views of mapped files."""

from __future__ import annotations

import math
from collections.abc import KeysView, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from mmx.errors import WeightsError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_LFS_MAGIC = b"version https://git-lfs"
_KINDS_OF_SIZE = {8: "F64 I64", 4: "F32 I32", 2: "F16 BF16 I16", 1: "F8_E4M3 F8_E5M2 I8 U8 BOOL"}
# Bytes of an element, by safetensors' name of the type.
_KINDS = {kind: size for size, kinds in _KINDS_OF_SIZE.items() for kind in kinds.split()}


class Entry(NamedTuple):
    """One tensor; ``kind`` is its type as the file names it, ``place`` its number in the file."""

    file: str
    kind: str
    shape: tuple[int, ...]
    place: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _KINDS[self.kind]


class Checkpoint:
    """The tensors of a folder, by name. Which file holds a tensor is read from the index alone, so stray
    files do no harm; a folder without index must hold one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
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
        tensor: torch.Tensor = self._files[self._entries[name].file].get_tensor(name)
        return tensor

    def require(self, name: str, shown: str, kinds: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        """WeightsError, which calls the tensor ``shown``, unless it has one of the types and shapes."""
        entry = self._entries[name]
        if entry.kind not in kinds or entry.shape not in shapes:
            raise WeightsError(
                f"tensor {shown} in {entry.file} must be {' or '.join(kinds)} of shape {list(shapes[0])}, "
                f"got {entry.kind} of {list(entry.shape)}"
            )

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
        except ValueError as error:
            raise WeightsError(f"{path} must be a JSON object with a weight_map: {error}") from None

    def _open_file(self, name: str) -> dict[str, Entry]:
        path = self.folder / name
        if Path(name).name != name or not path.is_file():
            raise WeightsError(f"{name} is missing in {self.folder}")
        with path.open("rb") as file:
            if file.read(len(_LFS_MAGIC)) == _LFS_MAGIC:
                raise WeightsError(
                    f"{name} is a Git LFS pointer, not the tensors: fetch it with `git lfs pull`"
                )
        try:
            tensors: Any = safe_open(path, framework="pt")
        except SafetensorError as error:
            text = f"{name} ({path.stat().st_size} bytes) is truncated or no safetensors file: {error}"
            raise WeightsError(text) from None
        self._files[name] = tensors
        entries = {}
        for place, key in enumerate(tensors.offset_keys()):
            part = tensors.get_slice(key)
            kind: str = part.get_dtype()
            if kind not in _KINDS:
                expected = ", ".join(_KINDS)
                raise WeightsError(f"{name}: tensor {key} has dtype {kind}, expected one of {expected}")
            entries[key] = Entry(name, kind, tuple(part.get_shape()), place)
        return entries


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
