"""Files stay short enough to read and the Python layer thin."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARD_LIMIT = 600
# One rank takes 7,000; layouts, collectives and launch forms the rest.
LAYER_LIMIT = 11400
CODE = {".py", ".h", ".cpp", ".cu", ".cuh", ".asc", ".cmake"}
# Rooms with a budget of their own, outside the layer that runs models.
OWN_BUDGET = ("server", "parsers", "grammar", "bench", "demo")


def tracked() -> list[Path]:
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in out.splitlines() if Path(line).suffix in CODE and (ROOT / line).exists()]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_too_long() -> None:
    long = {str(p.relative_to(ROOT)): lines(p) for p in tracked() if lines(p) > HARD_LIMIT}
    assert not long, f"files over {HARD_LIMIT} lines: {long}"


def test_python_layer_is_thin() -> None:
    package = ROOT / "python" / "mmx"
    counted = [p for p in tracked() if p.is_relative_to(package)]
    layer = [p for p in counted if p.relative_to(package).parts[0] not in OWN_BUDGET]
    total = sum(lines(p) for p in layer)
    assert total <= LAYER_LIMIT, f"the Python layer has {total} lines, at most {LAYER_LIMIT}"


def test_control_ids_are_never_literal() -> None:
    """Control tokens have other ids in other checkpoints; they come from the tokenizer by their text."""
    package = ROOT / "python" / "mmx"
    found = [str(p.relative_to(ROOT)) for p in package.rglob("*.py") if "2000" in _digits(p)]
    assert not found, f"literal control ids in {found}"


def _digits(path: Path) -> str:
    import re

    return "".join(re.findall(r"\b2000\d\d\b", path.read_text()))
