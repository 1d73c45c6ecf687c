"""``python -m mmx.bench serve [flags]``, ``python -m mmx.bench sweep [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mmx.bench.serve import main as serve
from mmx.bench.sweep import main as sweep

USAGE = """usage: mmx bench COMMAND

  serve [flags]   load a server and print its throughput and latencies (serve --help lists the flags)
  sweep [flags]   the same at growing concurrency, as a table (sweep --help lists its own flags)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Flags without a command mean ``serve``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h", "help"):
        print(USAGE)
        return 0
    if command == "serve":
        return serve(arguments[1:])
    if command == "sweep":
        return sweep(arguments[1:])
    if command.startswith("-"):
        return serve(arguments)
    print(f"mmx bench: unknown command {command!r}; expected serve or sweep", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
