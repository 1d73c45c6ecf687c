"""The list that torch is told of the Ascend kernels against the launchers that the .asc files define."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = re.compile(r"^MMX_ASCEND_(OP|WORKSPACE)\((\w+), mmx::(\w+)", re.MULTILINE)


def listed(path: Path, macro: str) -> dict[str, str]:
    """op -> its Params, of a list macro."""
    body = re.search(rf"#define {macro}\(X\)(.*?)\n\n", path.read_text(), re.DOTALL)
    assert body is not None
    return dict(re.findall(r"X\((\w+), (\w+)\)", body[1]))


def defined(kind: str) -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "ascend/kernels").glob("*.asc")):
        found |= {op: params for what, op, params in LAUNCHER.findall(path.read_text()) if what == kind}
    return found


def test_every_kernel_of_a_library_op_is_registered() -> None:
    ops = listed(ROOT / "cpp/core/ops.h", "MMX_OPS")
    with_kernel = {op: params for op, params in defined("OP").items() if op in ops}
    assert len(with_kernel) >= 10
    assert listed(ROOT / "ascend/backend.h", "MMX_ASCEND_OPS") == with_kernel


def test_every_workspace_of_a_library_op_is_registered() -> None:
    ops = listed(ROOT / "cpp/core/ops.h", "MMX_WORKSPACE_OPS")
    with_workspace = {op: params for op, params in defined("WORKSPACE").items() if op in ops}
    assert listed(ROOT / "ascend/backend.h", "MMX_ASCEND_WORKSPACE_OPS") == with_workspace
