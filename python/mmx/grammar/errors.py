"""What a schema asks for and can not have."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf

NO_TEXT = "NoExtensionBias"  # how llguidance reports a grammar that nothing fits


class SchemaError(ValueError):
    """``path`` is the place in the schema, the text one sentence that names it."""

    def __init__(self, path: str, message: str, code: str = "unsupported_schema") -> None:
        super().__init__(message)
        self.path = path
        self.code = code


_ends: ContextVar[float] = ContextVar("ends", default=inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Grammars are built within ``seconds``, or it is a SchemaError."""
    token = _ends.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends.reset(token)


def check_time() -> None:
    """Called wherever the work can grow faster than the schema."""
    if time.monotonic() > _ends.get():
        raise SchemaError("", "the constraint takes too long to prepare", "grammar_too_complex")


def reason_of(report: str) -> str:
    """The line of a report of llguidance that says what is wrong; faults of regular expressions come last."""
    if report.startswith(NO_TEXT):
        return "no text fits it"
    if "symbols.len()" in report:
        return "it has more than 65,000 symbols"
    fault = re.search(r"^error: (.+)$", report, re.MULTILINE)
    lines = report.strip().splitlines()
    return (fault[1] if fault else lines[0] if lines else "no reason given")[:160]
