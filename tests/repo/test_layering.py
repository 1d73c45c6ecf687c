"""The dependency order is one-way; this test holds the table (see docs/structure.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "mmx"

# A module may import only from rows above its own, and from its own package.
ROWS: list[set[str]] = [
    {
        "config",
        "protocol",
        "batch",
        "env",
        "errors",
        "model_config",
        "model_path",
        "flags",
        "layout",
        "launch",
        "logs",
    },
    {"scheduler", "tokenizer", "parsers"},
    {"grammar"},
    {"backend"},
    {"ops"},
    {"distributed"},
    {"layers"},
    {"models"},
    {"weights"},
    {"runner"},
    {"engine"},
    {"server", "bench"},
    {"llm"},
    {"demo", "__main__"},
]
ROW_OF = {package: row for row, packages in enumerate(ROWS) for package in packages}
TORCH_FREE_ROWS = {0, 1, 2, 11}
SERVER_ROW = 11


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Absolute names of modules that ``path`` imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports absolutely"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "mmx" else {module}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_go_upwards(path: Path) -> None:
    package = package_of(path)
    if package == "__init__":
        return
    assert package in ROW_OF, f"{package} is in no row of the table"
    row = ROW_OF[package]
    is_client = path == PACKAGE / "engine" / "client.py"
    for name in imports(path):
        head, *rest = name.split(".")
        if head in ("torch", "safetensors"):
            assert row not in TORCH_FREE_ROWS and not is_client, f"{path.name} must not import {name}"
        if head != "mmx" or not rest or rest[0] in (package, "__version__", "SamplingParams"):
            continue
        if row == SERVER_ROW:
            allowed = ROW_OF[rest[0]] <= 2 or name.startswith("mmx.engine.client")
            assert allowed, f"{package} may see rows 0 to 2 and engine.client, not {name}"
        elif is_client:
            assert ROW_OF[rest[0]] == 0, f"engine.client may see row 0 only, not {name}"
        else:
            # Row 0 is one room of plain data: its modules may use each other.
            lower = ROW_OF[rest[0]] < row or (row == 0 and ROW_OF[rest[0]] == 0)
            assert lower, f"{package} (row {row}) must not import {name} (row {ROW_OF[rest[0]]})"


@pytest.mark.parametrize(
    "module", ["mmx", "mmx.server.app", "mmx.scheduler", "mmx.tokenizer", "mmx.parsers", "mmx.engine.client"]
)
def test_import_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Folder of the including file -> prefixes it may include with quotes; the most specific folder counts.
INCLUDES: dict[str, tuple[str, ...]] = {
    "cpp/core": ("cpp/core/",),
    "cpp/kernels": ("cpp/core/", "cpp/kernels/"),
    "cpp/ops": ("cpp/core/", "cpp/ops/"),
    "cpp/bindings": ("cpp/core/", "cpp/ops/", "cpp/kernels/launchers.h"),
    "cuda/common": ("cpp/core/", "cuda/common/"),
    "cuda/kernels": ("cpp/core/", "cuda/common/", "cuda/kernels/"),
    "cuda": ("cpp/core/", "cpp/ops/", "cuda/"),
    "ascend/common": ("cpp/core/", "ascend/common/"),
    "ascend/kernels": ("cpp/core/", "ascend/common/", "ascend/kernels/"),
    "ascend": ("cpp/core/", "cpp/ops/", "ascend/"),
    "bench": ("cpp/core/", "cpp/kernels/launchers.h", "cuda/common/", "cuda/kernels/", "bench/"),
}
TORCH_ROOMS = ("cpp/ops", "cpp/bindings", "cuda/backend.h", "cuda/register.cpp", "ascend/register.cpp")
EXTRA = {"cpp/ops/register_cpu.cpp": ("cpp/kernels/launchers.h",)}


def cpp_files() -> list[Path]:
    found = [p for room in ("cpp", "cuda", "ascend", "bench") for p in (ROOT / room).rglob("*")]
    return sorted(p for p in found if p.suffix in {".h", ".cpp", ".cu", ".cuh", ".asc"})


@pytest.mark.parametrize("path", cpp_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_cpp_includes_follow_the_table(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    room = max((r for r in INCLUDES if relative.startswith(r + "/")), key=len)
    allowed = INCLUDES[room] + EXTRA.get(relative, ())
    for kind, name in re.findall(r'^\s*#\s*include\s+([<"])([^>"]+)', path.read_text(), re.MULTILINE):
        if kind == '"':
            assert name.startswith(allowed), f"{relative} must not include {name}"
            assert (ROOT / name).exists(), f"{relative} includes {name}, which is not there"
        elif name.startswith(("torch/", "ATen/", "c10/")):
            assert relative.startswith(TORCH_ROOMS), f"{relative} must not include {name}"
