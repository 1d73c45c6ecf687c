"""``python -m mmx.ops``: the table of ops and the backends that have a kernel for them, as in the README."""

from __future__ import annotations

from mmx import ops
from mmx.ops import _lib

KEYS = {"CPU": "CPU", "CUDA": "CUDA", "PrivateUse1": "Ascend"}


def _family(op: str) -> str:
    module: str = getattr(ops, op).__module__
    return module.rsplit(".", 1)[1]


def matrix() -> str:
    """Markdown table, one row per op."""
    rows = [f"| op | family | {' | '.join(KEYS.values())} |", "| --- | --- |" + " :-: |" * len(KEYS)]
    families = {op: _family(op) for op in _lib.op_names()}
    for op in sorted(families, key=lambda op: (families[op], op)):
        marks = " | ".join("yes" if _lib.has_kernel(op, key) else "-" for key in KEYS)
        rows.append(f"| `{op}` | {families[op]} | {marks} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(matrix())
