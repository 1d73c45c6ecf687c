"""The judge of racecheck's reports, on reports written here; racecheck itself needs a GPU."""

from __future__ import annotations

import re

import pytest

from ops.racecheck import (
    EXPLAINED,
    HANDOVERS,
    ROOT,
    Seen,
    check_handovers,
    explanation,
    is_ordered,
    judge,
    reports,
    source,
)

ITEM, READ = "shared.item[stage] = drawn;", "const PrefillItem item = shared.item[stage];"


def report(write: int, read: int) -> list[str]:
    file = "sm90_sparse_prefill.cu"
    return [
        f"..========= Error: Race reported between Write access at void f<1>(int *)+0x1a in {file}:{write}",
        f"=========     and Read access at g(const int *)+0x2b0 in {file}:{read} [8 hazards]",
        "========= ",
    ]


def line(text: str) -> int:
    return next(i for i, each in enumerate(source("sm90_sparse_prefill.cu"), 1) if text in each)


def test_a_report_is_explained_by_its_lines_and_by_no_others() -> None:
    log = report(line(ITEM), line(READ)) + report(line(ITEM), line(READ) + 1)
    used, unexplained = judge(log)
    assert [entry.handover for entry in used] == ["lane_leaves_for_warp"]
    assert [str(r.second.line) for r in unexplained] == [str(line(READ) + 1)]
    assert f"Write sm90_sparse_prefill.cu:{line(ITEM)} `{ITEM}`" in str(unexplained[0])


def test_an_explanation_needs_the_statements_that_order_its_accesses() -> None:
    (first,) = reports(report(line(ITEM), line(READ)))
    entry = explanation(first)
    assert entry is not None and is_ordered(entry)
    assert not is_ordered(entry._replace(order=(("sm90_sparse_prefill.cu", "__syncwarp(); return;"),)))


def test_reports_without_source_lines_are_refused() -> None:
    log = ["========= Error: Race reported between Read access at f(int *)+0x10"]
    with pytest.raises(ValueError, match=r"no source line for f.*build with -DCMAKE_CUDA_FLAGS=-lineinfo"):
        judge(log)


@pytest.mark.parametrize("entry", EXPLAINED, ids=lambda entry: entry.ends[0])
def test_explanations_speak_of_lines_that_exist(entry) -> None:
    assert HANDOVERS[entry.handover] is Seen.MISSED
    assert is_ordered(entry)
    text = "\n".join(p.read_text() for p in (ROOT / "cuda").rglob("*.cu*"))
    assert all(end in text for end in entry.ends)


def test_every_handover_is_a_kernel_that_runs() -> None:
    text = (ROOT / "tests/ops/handovers.cu").read_text()
    assert re.findall(r"RUN\((\w+), \d", text) == list(HANDOVERS)


def test_claims_about_handovers_are_compared_with_what_racecheck_says() -> None:
    reported = "========= Error: Race reported between Read access at f(int *)+0x10 in handovers.cu:7"
    log = []
    for name, seen in HANDOVERS.items():
        for variant in ("right", "broken"):
            if seen is Seen.MISSED or (seen is Seen.FOLLOWED and variant == "broken"):
                log.append(reported)
            log.append(f"handover {name} {variant} no error")
    assert check_handovers(log) == []
    log.remove("handover inside_warp right no error")
    log[log.index("handover polled right no error")] = "handover polled right unspecified launch failure"
    assert check_handovers([reported, *log]) == [
        "thread_to_threads, right: reported, though silent if right, reported if broken",
        "polled, right: unspecified launch failure",
        "inside_warp, right: did not run",
    ]
