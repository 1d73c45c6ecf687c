"""What runs on the emulator is what would be built with CANN: every kernel has its launch line."""

from __future__ import annotations

import re
from pathlib import Path

from ascend.emulated import ROOT

KINDS = {"kAivOnly": "MMX_VECTOR", "kMix12": "MMX_MIX"}


def launch_lines(pattern: str) -> set[tuple[str, ...]]:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "ascend" / "kernels").glob("*.asc")))
    return set(re.findall(pattern, text))


def emulated(macro: str) -> list[tuple[str, str, str]]:
    text = (ROOT / "tests" / "ascend" / "kernels.h").read_text()
    block = text[text.index(f"#define {macro}(X)") :]
    block = block[: re.search(r"[^\\]\n", block).end()]
    return re.findall(r"X\((\w+), (\w+), (\w+)\)", block)


def test_every_emulated_kernel_has_a_launch_line() -> None:
    plain, with_workspace = emulated("MMX_ASCEND_KERNELS"), emulated("MMX_ASCEND_WORKSPACE_KERNELS")
    expected = {(op, params, KINDS[kind]) for op, params, kind in (*plain, *with_workspace)}
    assert len(expected) >= 11
    assert launch_lines(r"MMX_ASCEND_OP\((\w+), mmx::(\w+), mmx::ascend::\w+,\s*(\w+)\)") == expected
    sized = {(op, params) for op, params, _ in with_workspace}
    assert launch_lines(r"MMX_ASCEND_WORKSPACE\((\w+), mmx::(\w+)\)") == sized


def test_bodies_hold_no_device_syntax_and_no_host_header() -> None:
    """Kernel bodies are what gcc parses: launch syntax and CANN's host headers stand in launch.h alone."""
    for path in sorted((ROOT / "ascend").rglob("*.h")):
        if path.name == "launch.h":
            continue
        text = path.read_text()
        assert "<<<" not in text and "platform_ascendc" not in text, Path(path).name
