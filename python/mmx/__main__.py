"""The ``mmx`` command: ``mmx serve [MODEL] [flags]``, ``mmx info``, ``mmx --version``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata

import mmx

USAGE = """usage: mmx COMMAND

  serve [MODEL] [flags]   serve a model over HTTP (mmx serve --help lists the flags)
  info                    versions and what this installation can run on
  --version               version of mmx"""

_LIBRARIES = ("torch", "aiohttp", "uvloop", "msgspec", "tokenizers", "jinja2", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command == "serve":
        from mmx.server.__main__ import main as serve

        return serve(arguments)
    if command == "info":
        return info()
    if command == "--version":
        print(f"mmx {mmx.__version__}")
        return 0
    if command in ("--help", "-h", "help"):
        print(USAGE)
        return 0
    print(f"mmx: unknown command {command!r}; expected serve, info or --version", file=sys.stderr)
    return 2


def info() -> int:
    """Print what a bug report needs."""
    print(f"mmx {mmx.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in _LIBRARIES:
        try:
            print(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name} is not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
