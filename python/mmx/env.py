"""The only reader of ``MMX_*`` environment variables inside the package."""

from __future__ import annotations

import os
from collections.abc import Mapping


def strict() -> bool:
    """``MMX_STRICT=1``: an op without a kernel on its device is an error instead of a slow fallback."""
    return os.environ.get("MMX_STRICT", "0") == "1"


def library_dir() -> str | None:
    """``MMX_LIBRARY_DIR``: folder with ``libmmx_ops.so`` and the device libraries, instead of the
    package's own (a build folder carried to another machine)."""
    return os.environ.get("MMX_LIBRARY_DIR")


def environment() -> Mapping[str, str]:
    """All variables, for the table of server flags: each flag can also be set as ``MMX_<FLAG>``."""
    return os.environ
