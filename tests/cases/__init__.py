"""Shapes shared by the op tests and the C++ benches: one csv per family, a row per case.

Columns: ``op``, ``use`` (``test``, ``bench``, ``both`` or ``large``: a bench's, of a whole
model), then the op's dimensions.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest


def load(family: str, op: str) -> list[pytest.param]:
    """Test cases of ``op`` as pytest params, each a dict of dimension name to integer; the id shows them."""
    with (Path(__file__).parent / f"{family}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["op"] == op and row["use"] in ("test", "both")]
    assert rows, f"no test cases of {op} in {family}.csv"
    params = []
    for row in rows:
        dims = {k: int(v) for k, v in row.items() if k not in ("op", "use") and v not in ("", None)}
        params.append(pytest.param(dims, id="-".join(f"{k}{v}" for k, v in dims.items())))
    return params
