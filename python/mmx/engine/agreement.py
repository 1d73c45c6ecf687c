"""What all ranks must have in common, and the sentence that says where one has not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

import mmx
from mmx.config import EngineConfig

# What may differ between machines: where the files are, and which ranks a machine starts.
OWN = ("model", "place")


def facts(config: EngineConfig) -> dict[str, str]:
    """Name -> value of versions, settings and files, as text."""
    settings = {key: value for key, value in msgspec.to_builtins(config).items() if key not in OWN}
    if config.load_format != "dummy":
        # Why: rank 0 alone draws seeds of requests, and draws its own where none is given.
        del settings["seed"]
    settings |= settings.pop("parallel")
    known = {"version of mmx": mmx.__version__, "version of torch": str(torch.__version__)}
    known |= {key: str(value) for key, value in settings.items()}
    return known | {f"file {name}": value for name, value in _files(Path(config.model)).items()}


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The first fact that differs, with both values; None if all agree."""
    for name in dict.fromkeys([*ours, *theirs]):
        mine, other = ours.get(name, "nothing"), theirs.get(name, "nothing")
        if mine != other:
            return f"{name} is {other} there and {mine} on rank 0"
    return None


def _files(folder: Path) -> dict[str, str]:
    """Digests of the small files of a checkpoint, sizes of its tensors' files."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        found[path.name] = "sha1 " + hashlib.sha1(path.read_bytes()).hexdigest()[:12]
    for path in sorted(folder.glob("*.safetensors")):
        found[path.name] = f"of {path.stat().st_size} bytes"
    return found
