"""Definitions of the numbers, on answers with written times."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.helpers import TOKENIZER, answer, chat, completion, ending, event
from mmx.bench.events import Answer, AnswerReader
from mmx.bench.measures import Measures, Statistics, measure


def measured(*answers: Answer, **more: object) -> Measures:
    return measure(answers, [10] * len(answers), TOKENIZER, **more)  # type: ignore[arg-type]


def test_statistics_interpolate() -> None:
    found = Statistics.of([0.004, 0.001, 0.003, 0.002], (0, 25, 50, 90, 99, 100))
    assert found is not None
    assert (found.mean, found.median, found.std) == pytest.approx((2.5, 2.5, 1.25**0.5))
    assert list(found.percentiles.values()) == pytest.approx([1, 1.75, 2.5, 3.7, 3.97, 4])
    assert Statistics.of([], (99,)) is None


def test_tpot_needs_two_tokens() -> None:
    one = measured(answer(0, 0.5, output_tokens=1))
    assert one.values("tpot") == []
    assert one.values("ttft") == [0.5]
    assert measured(answer(0, 0.5, 0.9, output_tokens=5)).values("tpot") == [pytest.approx(0.1)]


def test_events_of_one_read_are_one_gap() -> None:
    """Two events arrive together: raw gaps 0.2, 0 and 0.1; three tokens took 0.1 each in truth."""
    found = measured(answer(0, 0.1, 0.3, 0.3, 0.4, output_tokens=4))
    assert found.values("itl") == pytest.approx([0.2, 0.0, 0.1])
    assert found.values("itl_per_token") == pytest.approx([0.1, 0.1, 0.1])


def test_tokens_of_the_first_event_have_no_gap() -> None:
    assert measured(answer(0, 0.1, 0.3, counts=[3, 2])).values("itl_per_token") == pytest.approx([0.1, 0.1])


def test_gap_without_a_token_belongs_to_the_next() -> None:
    found = measured(answer(0, 0.1, 0.2, 0.4, counts=[1, 0, 3]))
    assert found.values("itl_per_token") == pytest.approx([0.1] * 3)


def test_text_is_encoded_where_nothing_tells_the_tokens() -> None:
    text = "hello there my friend"
    num_tokens = len(TOKENIZER.encode_plain(text))
    found = measured(answer(0, 0.1, 0.2, text=text, output_tokens=2 * num_tokens))
    assert len(found.values("itl_per_token")) == num_tokens
    assert found.num_without_itl == 0
    blind = measure([answer(0, 0.1, 0.2, output_tokens=9)], [10], None)
    assert blind.values("itl_per_token") == []
    assert blind.num_without_itl == 1


def test_tokens_that_can_not_be_counted() -> None:
    assert measure([answer(0, 0.1, 0.2, counts=[1, 2])], [5], None).output_tokens == 3
    with pytest.raises(ValueError, match="the server sends no usage: --tokenizer FOLDER is needed"):
        measure([answer(0, 0.1)], [5], None)
    assert measure([answer(0, 0.1, input_tokens=77, output_tokens=1)], [None], None).input_tokens == 77


def test_totals_and_peaks() -> None:
    found = measured(
        answer(100.0, 0.5, 0.9, 1.1, output_tokens=3),
        answer(100.2, 0.1, 0.2, output_tokens=6),
        answer(101.1, 0.5, output_tokens=1),
        Answer(arrival=100, start=100.3, end=102.0, error="gone"),
    )
    assert (len(found.requests), found.num_failed) == (3, 1)
    assert found.duration == pytest.approx(2.0)
    assert (found.input_tokens, found.output_tokens) == (30, 10)
    assert found.peak_output_tokens == 8
    assert found.peak_concurrency == 3
    assert found.user_throughput == pytest.approx((3 / 1.1 + 6 / 0.2 + 1 / 0.5) / 3)


def test_a_request_that_follows_another_is_not_beside_it() -> None:
    assert measured(answer(0, 1.0, output_tokens=1), answer(1.0, 1.0, output_tokens=1)).peak_concurrency == 1


def test_goodput_needs_all_limits() -> None:
    answers = [answer(0, 0.1, 0.2, output_tokens=2), answer(0, 0.1, 1.0, output_tokens=2)]
    assert measured(*answers, goodput=[("ttft", 100.1), ("e2el", 500)]).goodput == pytest.approx(1 / 1.0)
    assert measured(*answers, goodput=[("tpot", 50)]).goodput == 0
    assert measured(*answers).goodput is None


def test_nothing_succeeded() -> None:
    found = measured(Answer(arrival=0, start=0, end=1, error="gone"))
    assert (found.output_tokens, found.user_throughput, found.peak_output_tokens) == (0, 0, 0)
    assert found.values("ttft") == []


STREAM = (
    b": comment\r\n\r\n" + chat(role="assistant", content="") + chat(content="Gr\u00fc\u00dfe") + b"\n"
    + chat(reasoning="x") + event({"choices": [{"delta": {}, "finish_reason": "stop"}]}) + ending(7, 3, 2)
)  # fmt: skip


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_any_cut_of_the_stream_reads_the_same(cuts: list[int]) -> None:
    found = Answer(arrival=0, start=0)
    reader = AnswerReader(found)
    edges = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(edges):
        reader.feed(1.0, STREAM[begin:end])
    reader.end()
    assert [e.text for e in found.events] == ["Gr\u00fc\u00dfe", "x"]
    assert (found.input_tokens, found.output_tokens, found.cached_tokens, found.error) == (7, 3, 2, "")


def test_token_without_text_is_a_token() -> None:
    """A piece of a character has an event in completions; the end token has none."""
    found = Answer(arrival=0, start=0)
    reader = AnswerReader(found)
    for data in (completion(""), completion("\u00fc"), completion("", "stop")):
        reader.feed(1.0, data)
    reader.end()
    assert [e.text for e in found.events] == ["", "\u00fc"]
    assert found.error == ""
