"""A fixed sample of deliberate faults must not go unnoticed; ``python tests/ascend/mutants.py`` tries all."""

from __future__ import annotations

from ascend.mutants import score


def test_sample_of_mutants_is_caught(emulator):
    result = score(emulator, sample=30)
    assert result.total == 30
    assert result.share >= 0.95, f"survived: {result.survivors}"
