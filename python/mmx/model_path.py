"""Which folder a model argument means."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from mmx.errors import ConfigError


def demo_model_path() -> Path:
    """The folder of the model that is installed with the package, in M3's raw form."""
    return Path(str(resources.files("mmx"))) / "demo" / "model"


def model_path(model: str | None) -> Path:
    """The checkpoint folder for ``model``; None means the embedded demo model.

    Raises ConfigError unless the folder exists and holds a ``config.json``.
    """
    folder = demo_model_path() if model is None else Path(model).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"model must be a checkpoint folder, {str(folder)!r} is not a folder")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model must be a folder with a config.json, {str(folder)!r} has none")
    return folder
