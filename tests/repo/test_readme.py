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


PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "bench" / "NOTES.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
    rooms = "|".join(("ascend", "bench", "cpp", "cuda", "docs", "python", "tests"))
    for name in re.findall(rf"`((?:{rooms})/[\w./*-]+)`", text):
        assert list(ROOT.glob(name)), f"{page.name} names {name}, which is not there"
