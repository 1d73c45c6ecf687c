"""One Ascend NPU, through torch_npu; on Atlas A3 that is one of the two dies of a package."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

from mmx.backend.accelerator import Accelerator
from mmx.errors import ConfigError


class AscendBackend(Accelerator):
    """The current NPU. The chips have no e4m3: fp8 weights are multiplied out when they are loaded."""

    name = "npu"
    has_fp8 = False

    def __init__(self) -> None:
        api = npu_module()
        index = int(api.current_device())
        super().__init__(api, torch.device("npu", index), f"npu-{_number(index)}", "NPU")


def npu_module() -> Any:
    """``torch.npu``. torch_npu is imported here and nowhere else; it also brings "hccl", the collectives.

    Raises ConfigError where torch_npu or a device is missing.
    """
    try:
        importlib.import_module("torch_npu")
    except ImportError as error:
        raise ConfigError(f"device npu needs torch_npu, which can not be imported: {error}") from error
    api: Any = torch.npu  # type: ignore[attr-defined]
    if not api.is_available():
        raise ConfigError("device npu needs an Ascend NPU and its driver, torch_npu sees none")
    return api


def npu_present() -> bool:
    """Whether torch_npu has come with torch, as it does where it is installed, and sees a device."""
    return hasattr(torch, "npu") and bool(torch.npu.is_available())


def _number(index: int) -> str:
    """The machine's own number of the visible device ``index``."""
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)
