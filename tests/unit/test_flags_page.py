"""docs/flags.md shows the flags as they are."""

from __future__ import annotations

from pathlib import Path

from mmx.server.flag_help import help_markdown

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"


def test_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    # To renew the page, replace everything from its first table heading on.
    assert text[text.index("### ") :] == help_markdown(), (
        "docs/flags.md differs from mmx serve --help=markdown"
    )
