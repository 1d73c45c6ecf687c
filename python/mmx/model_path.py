"""Which folder a model argument means."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from mmx.env import environment
from mmx.errors import ConfigError


def demo_model_path() -> Path:
    """The folder of the model that is installed with the package, in M3's raw form."""
    return Path(str(resources.files("mmx"))) / "demo" / "model"


def hub_snapshots(name: str) -> list[Path]:
    """Folders that earlier downloads of ``name`` left in the cache of the Hugging Face hub, its main branch
    first."""
    home = environment().get("HF_HOME") or "~/.cache/huggingface"
    cache = Path(environment().get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    model = cache / f"models--{name.replace('/', '--')}"
    branch = model / "refs" / "main"
    main = branch.read_text().strip() if branch.is_file() else ""
    return sorted((model / "snapshots").glob("*"), key=lambda folder: (folder.name != main, folder.name))


def model_path(model: str | None) -> Path:
    """The checkpoint folder for ``model``, a folder or an id in the hub's cache; None means the embedded demo
    model.

    Raises ConfigError unless the folder exists and holds a ``config.json``.
    """
    folder = demo_model_path() if model is None else Path(model).expanduser()
    if model is not None and not folder.is_dir():
        for folder in hub_snapshots(model):
            if (folder / "config.json").is_file():
                return folder
        help = f"; hf download {model} fetches it" if re.fullmatch(r"[\w.-]+/[\w.-]+", model) else ""
        raise ConfigError(f"model must be a checkpoint folder or an id in the hub cache, not {model!r}{help}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model must be a folder with a config.json, {str(folder)!r} has none")
    return folder
