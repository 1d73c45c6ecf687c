"""Random events against a fake model: always drains, leaks nothing, and pages, chunks and neighbours
never change a token."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.batch import ScheduledBatch
from mmx.protocol import Submit
from unit.consistency import check_scheduler
from unit.scheduler_helpers import (
    Collector,
    FakeRunner,
    Loop,
    expected_output,
    make_scheduler,
    make_submit,
    run_until_idle,
)

BLOCK_SIZE = 4
MAX_MODEL_LEN = 40


@dataclass
class Step:
    """Run one step of the scheduler."""


@dataclass
class Cancel:
    """Abort the n-th request submitted so far."""

    index: int


# Why few distinct tokens and stems: so that prefixes repeat.
stems = st.sampled_from([[1] * 9, [1] * 13, [2, 3] * 6, [1, 1, 1, 1, 5, 5, 5, 5, 5]])
prompts = st.builds(
    lambda stem, cut, tail: [*stem[:cut], *tail] or [1],
    stems,
    st.integers(0, 13),
    st.lists(st.integers(0, 3), max_size=9),
)
requests = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "max_tokens": st.sampled_from([1, 3, 14, 18]),
        "ignore_eos": st.sampled_from([True, True, True, False]),
        "min_tokens": st.integers(0, 1),
        "priority": st.integers(0, 2),
        "cache_salt": st.sampled_from(["", "", "a"]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 0.0, 1.0]),
    }
)
# Why bursts: single arrivals between steps would hardly ever fill a pool.
bursts = st.lists(requests, min_size=1, max_size=6)
events = st.lists(
    st.one_of(bursts, st.builds(Step), st.builds(Step), st.builds(Cancel, st.integers(0, 30))), max_size=30
)


def play(
    script: list[object], num_blocks: int, max_num_seqs: int, chunk: int, caching: bool, overlap: bool = False
) -> tuple[Collector, list[Submit], list[str], list[ScheduledBatch]]:
    """Feed the events to a scheduler; returns what came out, all submits, aborted ids, all batches."""
    scheduler = make_scheduler(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chunk,
        max_num_queued_reqs=1000,
        enable_prefix_caching=caching,
    )
    runner = FakeRunner(num_blocks, BLOCK_SIZE)
    collector = Collector()
    loop = Loop(scheduler, runner, collector, overlap)
    submits: list[Submit] = []
    aborted: list[str] = []
    batches: list[ScheduledBatch] = []
    for event in script:
        if isinstance(event, list):
            for fields in event:
                submits.append(make_submit(f"r{len(submits)}", **fields))
                assert scheduler.submit(submits[-1], now=0.0) is None
        elif isinstance(event, Cancel):
            victim = f"r{event.index}"
            if event.index < len(submits) and victim not in collector.finish:
                aborted.append(victim)
            scheduler.abort([victim])
        elif (batch := loop.step()) is not None:
            assert batch.num_tokens <= chunk
            assert len(batch.seqs) <= max_num_seqs
            batches.append(batch)
        else:
            assert overlap or not scheduler.has_work
        check_scheduler(scheduler)
    run_until_idle(scheduler, runner, collector, loop=loop)
    return collector, submits, aborted, batches


@settings(max_examples=150, deadline=None)
@given(events, st.integers(10, 24), st.integers(1, 6), st.integers(1, 20), st.booleans(), st.booleans())
def test_outputs_depend_on_nothing_but_the_request(
    script: list[object], num_blocks: int, max_num_seqs: int, chunk: int, caching: bool, overlap: bool
) -> None:
    collector, submits, aborted, _ = play(script, num_blocks, max_num_seqs, chunk, caching, overlap)
    assert not collector.failed
    for submit in submits:
        tokens, finish = expected_output(submit, MAX_MODEL_LEN)
        got = collector.tokens.get(submit.request_id, [])
        if submit.request_id in aborted:
            assert got == tokens[: len(got)]
        else:
            assert (got, collector.finish[submit.request_id]) == (tokens, finish)


@settings(max_examples=40, deadline=None)
@given(events, st.integers(10, 16), st.integers(1, 6), st.integers(1, 20))
def test_two_schedulers_fed_the_same_events_emit_the_same_batches(
    script: list[object], num_blocks: int, max_num_seqs: int, chunk: int
) -> None:
    first = play(script, num_blocks, max_num_seqs, chunk, True)
    second = play(script, num_blocks, max_num_seqs, chunk, True)
    assert first[3] == second[3]
