"""What a schema asks for and can not have."""

from __future__ import annotations


class SchemaError(ValueError):
    """``path`` is the place in the schema, the text one sentence that names it."""

    def __init__(self, path: str, message: str, code: str = "unsupported_schema") -> None:
        super().__init__(message)
        self.path = path
        self.code = code
