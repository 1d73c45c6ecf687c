"""What compute-sanitizer's racecheck says of a run, judged: every report is explained or is an error.

racecheck knows some of the ways in which threads hand words over, misses others, and does not see what tensor
cores read and other thread blocks store. ``handovers.cu`` holds each way alone, right and broken, and
``HANDOVERS`` says what racecheck makes of it (``check_handovers`` compares). A report about a
kernel of the library is explained by an entry of ``EXPLAINED``: the two source lines, which of the ways that
racecheck misses orders them, by which statements, and why. Sources are matched by text: an entry holds
no longer than the lines it speaks of; libraries must be built with ``-DCMAKE_CUDA_FLAGS=-lineinfo``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Seen(Enum):
    FOLLOWED = "silent if right, reported if broken"
    MISSED = "reported even if right"
    BLIND = "silent even if broken"


# What racecheck 2025.3 (CUDA 13.0) makes of the kernels of handovers.cu.
HANDOVERS = {
    "thread_to_threads": Seen.FOLLOWED,
    "lanes_to_threads": Seen.FOLLOWED,
    "lane_arrives_for_warp": Seen.MISSED,
    "lane_leaves_for_warp": Seen.MISSED,
    "lane_waits_for_warp": Seen.FOLLOWED,
    "copy_engine_to_threads": Seen.FOLLOWED,
    "copies_to_threads": Seen.FOLLOWED,
    "threads_to_tensor_cores": Seen.BLIND,
    "through_another_warp": Seen.FOLLOWED,
    "named_barrier_of_some": Seen.FOLLOWED,
    "named_barrier_again": Seen.FOLLOWED,
    "named_barrier_beside_arrivals": Seen.MISSED,
    "arrive_without_waiting": Seen.BLIND,
    "inside_warp": Seen.FOLLOWED,
    "polled": Seen.MISSED,
    "to_another_block": Seen.BLIND,
}


class Place(NamedTuple):
    access: str  # Read or Write
    file: str  # name without folders
    line: int


class Report(NamedTuple):
    """Two accesses to the same words that racecheck found no order for."""

    first: Place
    second: Place
    function: str  # around the first, as far as it was not inlined

    def __str__(self) -> str:
        ends = " and ".join(
            f"{p.access} {p.file}:{p.line} `{statement(p)}`" for p in (self.first, self.second)
        )
        return f"{ends} in {self.function[:100]}"


class Explained(NamedTuple):
    ends: tuple[str, str]  # parts of the statements of the two accesses
    handover: str  # of HANDOVERS
    order: tuple[tuple[str, str], ...]  # (file, statements in it) without which the rest would not hold
    why: str


FP8_GIVES_BACK = (
    "sm90_fp8_tile.cuh",
    "__syncwarp(); // all lanes have read their scales "
    "if (lane_idx == 0) ptx::barrier_arrive(shared.empty[stage]);",
)
FP8_FEEDS = ("sm90_fp8.cuh", "ptx::barrier_wait(shared.empty[ring.at], ring.parity ^ 1);")
ROWS_RELEASE = (
    "sm90_tile_rows.cuh",
    "__syncwarp(); // all lanes have read if (lane_idx == 0) ptx::barrier_arrive(barrier);",
)
FEEDER_ARRIVES = (
    "sm90_tile_feed.cuh",
    "(shared.tile + tile_slot.at)[lane_idx] = tile.word; __syncwarp(); if (lane_idx == 0) { "
    "if (num_pages == 0) { ptx::barrier_arrive(shared.q_full[q.at]); } else { "
    "ptx::barrier_arrive_expect(shared.q_full[q.at], 2 * job.group * job.tile_tokens * 128);",
)
WIDENERS_ARRIVE = (
    "sm90_tile_feed.cuh",
    "__syncwarp(); if (lane_idx == 0) { "
    "ptx::barrier_arrive((keys ? shared.k_full : shared.v_full)[ring.at]); "
    "ptx::barrier_arrive(shared.codes_empty[codes.at]); }",
)
LISTS_RELEASE = (
    "sm90_sparse_prefill.cu",
    "__syncwarp(); // all lanes have read if (lane_idx == 0) ptx::barrier_arrive(barrier);",
)

EXPLAINED = [
    *(
        Explained(
            (read, "cp.async.ca.shared.global"),
            "lane_leaves_for_warp",
            (FP8_GIVES_BACK, FP8_FEEDS),
            "Scales are read, then fp8_release has a lane arrive at `empty` for its warp; each feeder waits "
            "there before it copies into the stage again.",
        )
        for read in (
            "const float4 s = *reinterpret_cast<const float4*>(run + i);",
            "const float2 s = *reinterpret_cast<const float2*>(run + kN / 4 - 2);",
            "fp8_promote<kN>(acc[h], part, scales, weights[",
        )
    ),
    Explained(
        ("kAhead < m) __nanosleep(500);", "static_cast<volatile int&>(shared.expert) ="),
        "polled",
        (("row_copies.cuh", "const volatile int& reached = shared.expert;"),),
        "How far the block is: with a late answer the copying warps sleep once more; nothing else is read "
        "by it.",
    ),
    *(
        Explained(
            ("(shared.tile + tile_slot.at)[lane_idx] = tile.word;", read),
            "lane_arrives_for_warp",
            (FEEDER_ARRIVES, ("sm90_tile_rows.cuh", "ptx::barrier_wait(shared.q_full[q.at], q.parity);")),
            "What is known of a tile: the feeding lanes write a word each, then one arrives for them at "
            "`q_full`, where its readers wait.",
        )
        for read in (
            "num_left = shared.tile[slot.at].num_pages;",
            "block = kParts ? shared.tile[slot.at].first_block + num_left : num_left;",
            "position = shared.tile[slot.at].first_position + ",
            "num_keys = shared.tile[slot.at].num_keys;",
            "const int head = shared.tile[slot.at].head;",
            "return tile.head * job.group + row + 8 * half",
            "token < tile.num_tokens",
            "token >= tile.num_tokens",
            "tile.first_block / kPartPages;",
        )
    ),
    Explained(
        (
            "shared.chosen[ring.at] = shared.codes_chosen[codes.at];",
            "shared.codes_chosen[codes.at] = chosen;",
        ),
        "lane_leaves_for_warp",
        (WIDENERS_ARRIVE,),
        "The first widening warp's lane 0 reads it, then arrives at `codes_empty`, where its writer waits.",
    ),
    *(
        Explained(
            (
                "const CodesOf what = shared.codes_of[codes.at];",
                f"shared.codes_of[codes.at] = CodesOf::{what};",
            ),
            "lane_leaves_for_warp",
            (WIDENERS_ARRIVE,),
            "What a slot of codes holds: each widening warp reads it behind a wait at `codes_full`, then a "
            "lane arrives at `codes_empty` for it; the feeding lane waits there before it says the next.",
        )
        for what in ("kKeys", "kValues", "kEnd")
    ),
    *(
        Explained(
            ("block = kListed ? shared.chosen[k.at] : block - 1;", write),
            "lane_leaves_for_warp",
            (ROWS_RELEASE,),
            "The listed block: read behind a wait at `k_full`; a lane arrives for its warp at `k_empty`, "
            "where its writer waits.",
        )
        for write in (
            "if constexpr (kListed) shared.chosen[k.at] = chosen;",
            "shared.chosen[ring.at] = shared.codes_chosen[codes.at];",
        )
    ),
    Explained(
        ("half * kHalfPageBytes + key * 128 + b % 8 * 16) =", "st.shared.v4.u32"),
        "lane_leaves_for_warp",
        (ROWS_RELEASE,),
        "Zeros over a last page's unused slots: written before the page's products; behind those a lane "
        "arrives for its warp at `v_empty`, where the widening warps wait before they write the next page.",
    ),
    Explained(
        ("shared.item[stage] = drawn;", "const PrefillItem item = shared.item[stage];"),
        "lane_leaves_for_warp",
        (("sm90_sparse_prefill.cu", "__syncwarp();  // all lanes have read the item"), LISTS_RELEASE),
        "The work item: a feeding warp reads it, then a lane of it arrives at `kv_full`; a lane of each "
        "consuming warp waits there and arrives at `kv_empty`, where thread 0 waits before it writes the "
        "next.",
    ),
    Explained(
        ("acc[i] = round > 0 ? sums[i * Tile::kSet] : 0.0f;", "sums[i * Tile::kSet] = acc[i];"),
        "lane_leaves_for_warp",
        (
            (
                "sm90_fp8_stream_rows.cuh",
                "__syncwarp(); if (lane_idx == 0) "
                "ptx::barrier_arrive(shared.turn[(turn + 1) % kTurns][warp_idx]);",
            ),
            ("sm90_fp8_stream_rows.cuh", "ptx::barrier_wait(shared.turn[turn][warp_idx], turn_parity);"),
        ),
        "Sums that warps of the groups have in turn: one reads, adds and writes them, then a lane arrives "
        "for it at the next group's `turn`, where that group's warp waits before it does the same.",
    ),
    Explained(
        ("shared.notes[slot][warp_idx] = note;", "ld.shared.v4.u32"),
        "lane_leaves_for_warp",
        (LISTS_RELEASE, ("sm90_sparse_prefill.cu", "release(shared.q_empty[slot_now()]);")),
        "What a warp is told of its query: read behind a wait at `q_full`; with the scores there, a lane "
        "arrives for its warp at `q_empty`, where the note's writer waits.",
    ),
]


@cache
def source(name: str) -> list[str]:
    """Lines of a file of cuda/ or tests/ops/, by its name alone, which no two share."""
    paths = [p for folder in ("cuda", "tests/ops") for p in (ROOT / folder).rglob(name)]
    if len(paths) != 1:
        raise ValueError(f"racecheck names {name}, of which there are {len(paths)} in cuda/ and tests/ops/")
    return paths[0].read_text().splitlines()


ACCESS = re.compile(r"(Read|Write) access at (.*)\+0x[0-9a-f]+(?: in (\S+):(\d+))?")


def access(line: str) -> tuple[Place, str] | None:
    match = ACCESS.search(line)
    if match is None:
        return None
    kind, function, file, number = match.groups()
    if file is None:
        raise ValueError(f"no source line for {function}: build with -DCMAKE_CUDA_FLAGS=-lineinfo")
    return Place(kind, file, int(number)), function


def reports(log: Iterable[str]) -> Iterator[Report]:
    """Of racecheck's analysis: an access, then those that it has no order with."""
    first: tuple[Place, str] | None = None
    for line in log:
        if "Race reported between" in line:
            first = access(line)
        elif first is not None and line.startswith("=========     and "):
            second = access(line)
            assert second is not None, line
            yield Report(first[0], second[0], first[1])


def statement(place: Place) -> str:
    """The line of an access; of one inside an asm block, the block so far and a few lines more."""
    lines, at = source(place.file), place.line - 1
    begin = next((i for i in range(at, max(-1, at - 6), -1) if "asm" in lines[i]), None)
    if begin is None or (begin < at and not lines[at].strip().startswith(('"', ":"))):
        return lines[at].strip()
    return " ".join(line.strip() for line in lines[begin : at + 3])


def explanation(report: Report) -> Explained | None:
    a, b = statement(report.first), statement(report.second)
    for entry in EXPLAINED:
        x, y = entry.ends
        if (x in a and y in b) or (x in b and y in a):
            return entry
    return None


def is_ordered(entry: Explained) -> bool:
    """Whether the statements that an explanation relies on are still there, apart from white space."""
    return all(
        " ".join(text.split()) in " ".join(" ".join(source(file)).split()) for file, text in entry.order
    )


def judge(log: Iterable[str]) -> tuple[dict[Explained, int], list[Report]]:
    """How often each explanation was needed, and the reports that none explains, each once."""
    used: dict[Explained, int] = {}
    unexplained: dict[Report, None] = {}
    for report in reports(log):
        entry = explanation(report)
        if entry is None or not is_ordered(entry):
            unexplained[report] = None
        else:
            used[entry] = used.get(entry, 0) + 1
    return used, list(unexplained)


def check_handovers(log: Iterable[str]) -> list[str]:
    """What handovers.cu's output says against ``HANDOVERS``."""
    wrong, said, reported = [], set(), False
    for line in log:
        reported |= "Race reported between" in line
        if not line.startswith("handover "):
            continue
        _, name, variant, *result = line.split()
        seen = HANDOVERS[name]
        expected = seen is Seen.MISSED if variant == "right" else seen is not Seen.BLIND
        if " ".join(result) != "no error":
            wrong.append(f"{name}, {variant}: {' '.join(result)}")
        elif reported != expected:
            wrong.append(f"{name}, {variant}: {'' if reported else 'not '}reported, though {seen.value}")
        said.add((name, variant))
        reported = False
    missing = {(name, variant) for name in HANDOVERS for variant in ("right", "broken")} - said
    return wrong + [f"{name}, {variant}: did not run" for name, variant in sorted(missing)]
