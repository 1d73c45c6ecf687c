"""The demo model: a small trained M3 that ships inside the package, its training and its evaluation."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Return the folder of the embedded checkpoint (raw M3 form: config, tokenizer, template, weights)."""
    return Path(__file__).parent / "model"
