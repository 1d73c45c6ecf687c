"""A fixed sample of deliberate faults must not go unnoticed; ``python tests/ascend/mutants.py`` tries all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ascend.mutants import score


def test_sample_of_mutants_is_caught(emulator):
    result = score(emulator, sample=30)
    assert result.total == 30
    assert result.share >= 0.95, f"survived: {result.survivors}"


@pytest.mark.parametrize("program", ["modelled.py", "mutants.py"])
def test_programs_say_what_they_lack(program: str, tmp_path: Path) -> None:
    missing = tmp_path / "libmmx_ascend_emulated.so"
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / program)],
        env={**os.environ, "MMX_ASCEND_EMULATED": str(missing)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"the emulator is not built: {missing} is missing (docs/ascend.md has the command)\n"
