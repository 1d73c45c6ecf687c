"""The ``mmx`` command: ``mmx serve [MODEL] [flags]``, ``mmx launch``, ``mmx bench``, ``mmx info``, ``mmx
--version``."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

import mmx
from mmx import env

USAGE = """usage: mmx COMMAND

  serve [MODEL] [flags]   serve a model over HTTP (mmx serve --help lists the flags)
  launch COMMAND          run COMMAND as the rank that srun or mpirun started (mmx serve sees that by itself)
  bench serve [flags]     load a server, measure throughput and latencies (mmx bench --help)
  info                    versions and what this installation can run on
  --version               version of mmx"""

_BACKENDS = {"cpu": "CPU", "cuda": "CUDA", "ascend": "PrivateUse1"}
_PACKAGES = ("torch", "aiohttp", "uvloop", "msgspec", "tokenizers", "jinja2", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command == "serve":
        from mmx.server.__main__ import main as serve

        return serve(arguments)
    if command == "bench":
        from mmx.bench.__main__ import main as bench

        return bench(arguments)
    if command == "launch":
        return launch(arguments)
    if command == "info":
        return info()
    if command == "--version":
        print(f"mmx {mmx.__version__}")
        return 0
    if command in ("--help", "-h", "help"):
        print(USAGE)
        return 0
    print(
        f"mmx: unknown command {command!r}; expected serve, launch, bench, info or --version", file=sys.stderr
    )
    return 2


def launch(arguments: list[str]) -> int:
    """Become the command behind ``mmx launch``: the server reads the rank from the launcher's variables."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        print("mmx launch: give the command to run, such as mmx serve MODEL", file=sys.stderr)
        return 2
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"mmx launch: can not run {command[0]}: {error.strerror}", file=sys.stderr)
        return 2


def info() -> int:
    """Print what a bug report needs."""
    print(f"mmx {mmx.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in _PACKAGES:
        try:
            print(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name} is not installed")
    _print_kernels()
    for name, value in sorted(env.environment().items()):
        if name.startswith("MMX_"):
            print(f"  {name}={'***' if 'KEY' in name else value}")
    return 0


def _print_kernels() -> None:
    """Which ops have a kernel of their own where; the others run their slow reference."""
    try:
        from mmx.ops._lib import has_kernel, op_names
    except ImportError as error:
        print(f"  no kernels: {error}")
        return
    names = op_names()
    for backend, key in _BACKENDS.items():
        missing = [name for name in names if not has_kernel(name, key)]
        print(f"  {backend}: {len(names) - len(missing)} of {len(names)} ops have kernels")
        if 0 < len(missing) < len(names):
            print(f"    without: {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
