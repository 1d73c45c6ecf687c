"""Incremental detokenizer and stop strings: any chunking equals one shot."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.tokenizer import IncrementalDetokenizer, StopStrings
from unit.tokenizer_helpers import m3_tokenizer

TOKENIZER = m3_tokenizer()
CONTROLS = set(TOKENIZER.control_ids.values())
IDS = st.lists(
    st.integers(0, TOKENIZER.vocab_size - 1)
    | st.sampled_from(sorted(CONTROLS))
    | st.sampled_from(TOKENIZER.encode_plain("é日🌊\u200d")),
    max_size=30,
)


def cut(items: list[int], cuts: list[int]) -> list[list[int]]:
    borders = sorted({0, len(items), *(c % (len(items) + 1) for c in cuts)})
    return [items[a:b] for a, b in itertools.pairwise(borders)]


@settings(max_examples=300, deadline=None)
@given(IDS, st.lists(st.integers(0, 30)), st.booleans())
def test_any_chunking_equals_decode(ids: list[int], cuts: list[int], skip: bool) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, skip_special_tokens=skip)
    text = "".join(detokenizer.feed(chunk) for chunk in cut(ids, cuts)) + detokenizer.finish()
    assert text == TOKENIZER.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(IDS, st.lists(st.integers(0, 30)), st.booleans())
def test_segments_carry_every_id_once_and_isolate_control_tokens(
    ids: list[int], cuts: list[int], skip: bool
) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, skip_special_tokens=skip)
    segments = [segment for chunk in cut(ids, cuts) for segment in detokenizer.feed_segments(chunk)]
    assert "".join(s.text for s in segments) + detokenizer.finish() == TOKENIZER.decode(ids, skip)
    assert [i for s in segments for i in s.token_ids] == ids
    for segment in segments:
        if segment.is_control:
            (token_id,) = segment.token_ids
            assert segment.text == (TOKENIZER.decode([token_id], skip_special_tokens=skip))
        else:
            assert not CONTROLS & set(segment.token_ids)


def test_character_is_held_until_complete() -> None:
    ids = TOKENIZER.encode_plain("🌊")
    assert len(ids) > 1, "the test needs a character of several tokens"
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert [detokenizer.feed([i]) for i in ids] == [*[""] * (len(ids) - 1), "🌊"]


def test_kept_special_tokens_survive() -> None:
    ids = TOKENIZER.encode("a[e~[]~b]b</mm:think>")
    end = TOKENIZER.control_ids["[e~["]
    assert IncrementalDetokenizer(TOKENIZER).feed(ids) == "ab</mm:think>"
    assert IncrementalDetokenizer(TOKENIZER, keep=[end]).feed(ids) == "a[e~[b</mm:think>"
    assert IncrementalDetokenizer(TOKENIZER, skip_special_tokens=False).feed(ids) == "a[e~[]~b]b</mm:think>"


# ---- stop strings ------------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(
    st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 12)), st.booleans(),
)  # fmt: skip
def test_any_chunking_finds_the_same_stop(text: str, stop: list[str], cuts: list[int], include: bool) -> None:
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    expected, matched = text, None
    if ends:
        end, start, matched = min(ends)
        expected = text[: end if include else start]
    stops = StopStrings(stop, include_stop_str=include)
    chunks = ["".join(chunk) for chunk in cut(list(text), cuts)]  # type: ignore[arg-type]
    assert "".join([*map(stops.feed, chunks), stops.finish()]) == expected
    assert stops.matched == matched


def test_only_a_possible_stop_is_held_back() -> None:
    stops = StopStrings(["\n\nUser:"])
    assert stops.feed("Hello") == "Hello"
    assert stops.feed("\n") == ""
    assert stops.feed("\nUs") == ""
    assert stops.feed("ual") == "\n\nUsual"
    assert stops.feed("\n\nUser: x") == ""
    assert stops.matched == "\n\nUser:"
    assert stops.feed("more") == ""


def test_release_keeps_a_marker_whole() -> None:
    stops = StopStrings([">x", "</mm:think>"])
    assert stops.feed("a") == "a"
    assert stops.feed("<mm:think>", release=True) == "<mm:think>"
    assert stops.feed("x") == "x"
    assert stops.feed("</mm:think>", release=True) == ""
    assert stops.matched == "</mm:think>"


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="stop"):
        StopStrings(["a", ""])
