"""The cases for compute-sanitizer: every op has some."""

from __future__ import annotations

from mmx.ops._lib import op_names
from ops.sanitize import SMALL, chosen


def test_every_op_is_looked_at() -> None:
    assert sorted(SMALL) == op_names()
    assert all(SMALL.values())


def test_cases_are_chosen_by_op_and_by_test() -> None:
    assert chosen(["rope_store"]) == SMALL["norm_rope_store"]
    assert all("sm90" in case for case in chosen(["sm90"])) and chosen(["sm90"])
    assert len(chosen([])) == sum(map(len, SMALL.values()))
