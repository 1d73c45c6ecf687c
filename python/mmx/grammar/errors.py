"""What a schema asks for and can not have."""

from __future__ import annotations

import re

NO_TEXT = "NoExtensionBias"  # how llguidance reports a grammar that nothing fits


class SchemaError(ValueError):
    """``path`` is the place in the schema, the text one sentence that names it."""

    def __init__(self, path: str, message: str, code: str = "unsupported_schema") -> None:
        super().__init__(message)
        self.path = path
        self.code = code


def reason_of(report: str) -> str:
    """The line of a report of llguidance that says what is wrong; faults of regular expressions come last."""
    if report.startswith(NO_TEXT):
        return "no text fits it"
    fault = re.search(r"^error: (.+)$", report, re.MULTILINE)
    lines = report.strip().splitlines()
    return (fault[1] if fault else lines[0] if lines else "no reason given")[:160]
