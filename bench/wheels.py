"""Fetches what a machine without network lacks to build and run mmx: wheels for its Python.

On that machine:   python3 -m pip list --format=freeze > have.txt
Here:              python bench/wheels.py --have have.txt --python 3.12 --to wheels
On that machine:   python3 -m pip install --no-index --no-deps wheels/*.whl
                   python3 -m pip install . --no-build-isolation --no-deps

Packages it has are kept as they are (torch above all), whatever version this checkout was tested with.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def needed_by_mmx(pyproject: Path) -> list[Requirement]:
    """Requirements of the build and of running."""
    table = tomllib.loads(pyproject.read_text())
    return [
        Requirement(line) for line in table["build-system"]["requires"] + table["project"]["dependencies"]
    ]


def names_in_freeze(text: str) -> set[str]:
    """Canonical package names of ``pip list --format=freeze`` output."""
    names = [re.split(r"==| @ ", line, maxsplit=1)[0] for line in text.splitlines() if line.strip()]
    return {str(canonicalize_name(name)) for name in names}


def needed_by_wheel(wheel: Path) -> list[Requirement]:
    """Requirements in a wheel's metadata, extras included as conditions."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


def missing(requirements: Iterable[Requirement], have: set[str], python: str) -> list[Requirement]:
    """Those whose package is not in ``have`` and whose condition holds on Linux with that Python."""
    target = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
        "sys_platform": "linux",
    }
    target |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    target |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return [
        need
        for need in requirements
        if canonicalize_name(need.name) not in have and (need.marker is None or need.marker.evaluate(target))
    ]


def download(need: Requirement, python: str, folder: Path) -> Path:
    """The newest wheel that fits; RuntimeError with pip's words if there is none."""
    before = set(folder.glob("*.whl"))
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 24, 17)]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    bare = f"{need.name}{need.specifier}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    command += [f"--platform={platform}" for platform in platforms]
    done = subprocess.run([*command, bare], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no wheel of {bare} for Python {python}: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = set(folder.glob("*.whl")) - before
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--have", type=Path, required=True, help="`pip list --format=freeze` of the machine")
    parser.add_argument("--python", default="3.12", help="its Python version, default 3.12")
    parser.add_argument("--to", type=Path, required=True, help="folder for the wheels, which must be empty")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    if any(options.to.iterdir()):
        parser.error(f"--to must name an empty folder, {options.to} is not")
    have = names_in_freeze(options.have.read_text())
    queue = missing(needed_by_mmx(ROOT / "pyproject.toml"), have, options.python)
    while queue:
        need = queue.pop()
        if canonicalize_name(need.name) in have:
            continue
        wheel = download(need, options.python, options.to)
        have.add(str(canonicalize_name(need.name)))
        print(wheel.name, flush=True)
        queue += missing(needed_by_wheel(wheel), have, options.python)


if __name__ == "__main__":
    main()
