"""What the README says is what CI runs and what the libraries hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmx.ops import _lib
from mmx.ops.__main__ import matrix

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("marker", ["install-and-serve", "ask", "install-and-test"])
def test_ci_runs_the_commands_of_the_readme(marker: str) -> None:
    assert re.search(rf"^<!-- {marker} -->\n```sh\n.+?\n```", README, re.MULTILINE | re.DOTALL)
    assert f"readme {marker}" in (ROOT / ".ci" / "run").read_text()


def test_op_table_is_current() -> None:
    if not (_lib._library_dir() / "libmmx_cuda.so").exists():
        pytest.skip("built without a CUDA compiler: the table shows CUDA kernels")
    assert matrix() in README, "run `python -m mmx.ops` and paste its table into README.md"


def test_links_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"
