"""Rules of the scheduler, one by one."""

from __future__ import annotations

import pytest

from mmx.batch import SampledToken
from mmx.scheduler import Scheduler
from unit.consistency import check_scheduler
from unit.scheduler_helpers import (
    EOS,
    VOCAB,
    Collector,
    FakeRunner,
    expected_output,
    make_scheduler,
    make_submit,
    next_token,
    run_until_idle,
)


def submit(scheduler: Scheduler, request_id: str, prompt: list[int], **fields: object) -> None:
    assert scheduler.submit(make_submit(request_id, prompt, **fields), now=0.0) is None


def shape(scheduler: Scheduler) -> list[tuple[str, int, int, bool]]:
    """Plan and commit one step; (id, start, number of tokens, samples) of each sequence."""
    batch = scheduler.schedule()
    assert batch is not None
    # Why token 1: it is neither an end token nor stops anything here.
    scheduler.commit(
        batch, [SampledToken(request_id=s.request_id, token_id=1) for s in batch.seqs if s.samples]
    )
    return [(s.request_id, s.start, len(s.token_ids), s.samples) for s in batch.seqs]


def test_decodes_go_first_then_chunks_then_new_requests() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    submit(scheduler, "a", [1, 2, 3])
    assert shape(scheduler) == [("a", 0, 3, True)]
    submit(scheduler, "b", [2] * 12)
    submit(scheduler, "c", [3])
    assert shape(scheduler) == [("a", 3, 1, True), ("b", 0, 7, False)]
    assert shape(scheduler) == [("a", 4, 1, True), ("c", 0, 1, True), ("b", 7, 5, True)]
    assert shape(scheduler) == [("a", 5, 1, True), ("b", 12, 1, True), ("c", 1, 1, True)]


def test_priority_beats_arrival_and_equal_priority_is_first_come() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for request_id, priority in (("late", 5), ("first", 0), ("second", 0), ("urgent", -1)):
        submit(scheduler, request_id, [1], max_tokens=1, priority=priority)
    assert [shape(scheduler)[0][0] for _ in range(4)] == ["urgent", "first", "second", "late"]


def test_a_long_prompt_leaves_half_of_its_steps_to_short_ones() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8, num_blocks=64)
    submit(scheduler, "long", [1] * 60)
    assert shape(scheduler) == [("long", 0, 8, False)]
    submit(scheduler, "also long", [2] * 30)
    submit(scheduler, "short", [3] * 3)
    submit(scheduler, "one", [4])
    submit(scheduler, "too much", [5, 6])
    # Behind another long one, the short ones start at once; the long one goes on.
    assert shape(scheduler) == [("one", 0, 1, True), ("short", 0, 3, True), ("long", 8, 4, False)]
    # Two decodes leave six tokens, of which half is for short prompts.
    assert shape(scheduler) == [
        ("short", 3, 1, True),
        ("one", 1, 1, True),
        ("too much", 0, 2, True),
        ("long", 12, 4, False),
    ]


def test_prompts_of_equal_length_are_not_interleaved() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    for i, name in enumerate("abc"):
        submit(scheduler, name, [1 + i] * 12)
    assert [shape(scheduler) for _ in range(2)] == [
        [("a", 0, 8, False)],
        [("a", 8, 4, True), ("b", 0, 4, False)],
    ]


def test_max_num_seqs_and_token_budget_hold() -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_num_batched_tokens=5)
    for i in range(3):
        submit(scheduler, f"r{i}", [1, 2, 3])
    assert shape(scheduler) == [("r0", 0, 3, True), ("r1", 0, 2, False)]
    assert shape(scheduler) == [("r0", 3, 1, True), ("r1", 2, 1, True)]


def test_the_last_in_order_is_preempted_and_comes_back_with_the_same_tokens() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=4, max_num_seqs=3, max_num_batched_tokens=64)
    runner, collector = FakeRunner(5, 4), Collector()
    submits = [make_submit(f"r{i}", [i] * 4, max_tokens=10, ignore_eos=True) for i in range(3)]
    for message in submits:
        assert scheduler.submit(message, now=0.0) is None
    run_until_idle(scheduler, runner, collector)
    assert scheduler.stats().num_preemptions > 0
    assert next(iter(collector.finish)) == "r0"
    for message in submits:
        assert collector.tokens[message.request_id] == expected_output(message, 64)[0]


def test_the_last_free_pages_are_left_to_those_who_run() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4, max_num_seqs=3, max_num_batched_tokens=64)
    submit(scheduler, "a", [1] * 3)
    submit(scheduler, "b", [2] * 3)
    shape(scheduler)
    submit(scheduler, "c", [3] * 3)
    assert shape(scheduler) == [("a", 3, 1, True), ("b", 3, 1, True)]  # c would take the last page
    assert shape(scheduler) == [("a", 4, 1, True)]  # a takes it, b gives way
    assert scheduler.stats().num_waiting == 2
    check_scheduler(scheduler)


@pytest.mark.parametrize(
    ("num_common", "num_hits"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 8), (13, 12)]
)
def test_a_hit_covers_whole_pages_only(num_common: int, num_hits: int) -> None:
    scheduler, runner = make_scheduler(), FakeRunner(16, 4)
    collector = Collector()
    submit(scheduler, "cold", [1] * 13, max_tokens=1)
    run_until_idle(scheduler, runner, collector)
    submit(scheduler, "warm", [1] * num_common + [2] * (14 - num_common), max_tokens=1)
    run_until_idle(scheduler, runner, collector)
    assert collector.cached == {"cold": 0, "warm": num_hits}
    stats = scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (27, num_hits)


def test_at_least_the_last_prompt_token_is_computed() -> None:
    scheduler, runner, collector = make_scheduler(), FakeRunner(16, 4), Collector()
    for request_id in ("cold", "warm"):
        submit(scheduler, request_id, [1] * 8, max_tokens=1)
        run_until_idle(scheduler, runner, collector)
    assert collector.cached == {"cold": 0, "warm": 4}


def test_generated_pages_are_hit_by_the_next_turn() -> None:
    scheduler, runner, collector = make_scheduler(), FakeRunner(16, 4), Collector()
    submit(scheduler, "turn1", [1] * 6, max_tokens=8, ignore_eos=True)
    run_until_idle(scheduler, runner, collector)
    submit(scheduler, "turn2", [1] * 6 + collector.tokens["turn1"] + [5], max_tokens=1)
    run_until_idle(scheduler, runner, collector)
    # The 14th token was sampled but never computed: 13 computed positions are 3 whole pages.
    assert collector.cached["turn2"] == 12


def test_salt_separates_and_reset_forgets() -> None:
    scheduler, runner, collector = make_scheduler(), FakeRunner(16, 4), Collector()
    for request_id, salt in (("a", ""), ("b", "x"), ("c", "x")):
        submit(scheduler, request_id, [1] * 9, max_tokens=1, cache_salt=salt)
        run_until_idle(scheduler, runner, collector)
    scheduler.reset_prefix_cache()
    check_scheduler(scheduler)
    submit(scheduler, "d", [1] * 9, max_tokens=1)
    run_until_idle(scheduler, runner, collector)
    assert collector.cached == {"a": 0, "b": 0, "c": 8, "d": 0}


def test_a_page_is_no_hit_before_it_was_computed() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=64)
    submit(scheduler, "a", [1] * 9)
    submit(scheduler, "b", [1] * 9)
    assert shape(scheduler) == [("a", 0, 9, True), ("b", 0, 9, True)]


def test_prefix_caching_can_be_off() -> None:
    scheduler, runner = make_scheduler(enable_prefix_caching=False), FakeRunner(16, 4)
    collector = Collector()
    for request_id in ("a", "b"):
        submit(scheduler, request_id, [1] * 9, max_tokens=1)
        run_until_idle(scheduler, runner, collector)
    assert collector.cached == {"a": 0, "b": 0}
    assert scheduler.stats().num_cached_blocks == scheduler.stats().prefix_cache_queries == 0


def first_stop(prompt: list[int], token_id: int) -> int:
    """How many tokens the fake model generates until it emits this one."""
    tokens, count = list(prompt), 0
    while True:
        count += 1
        tokens.append(next_token(tokens))
        if tokens[-1] == token_id:
            return count


def test_stop_conditions() -> None:
    scheduler = make_scheduler(num_blocks=64, max_model_len=200, max_num_seqs=8)
    prompt = [3, 4]
    num_eos = first_stop(prompt, EOS)
    assert 2 < num_eos < 190
    other = next_token(prompt)  # the very first token
    cases: dict[str, dict[str, object]] = {
        "eos": {},
        "ignored": {"ignore_eos": True, "max_tokens": num_eos + 3},
        "stop_id": {"stop_token_ids": (other,)},
        "max": {"max_tokens": 2},
        "context": {"ignore_eos": True},
        "min": {"min_tokens": num_eos + 1},
    }
    for name, fields in cases.items():
        submit(scheduler, name, prompt, **fields)
    collector = run_until_idle(scheduler, FakeRunner(64, 4))
    length = {name: len(tokens) for name, tokens in collector.tokens.items()}
    assert collector.finish == {
        "eos": "stop",
        "ignored": "length",
        "stop_id": "stop",
        "max": "length",
        "context": "length",
        "min": "stop",
    }
    assert length["eos"] == num_eos
    assert length["ignored"] == num_eos + 3
    assert length["stop_id"] == 1
    assert length["max"] == 2
    assert length["context"] == 200 - len(prompt)
    assert length["min"] > num_eos + 1
    assert EOS not in collector.tokens["min"][:-1]


def test_the_stop_reason_is_the_token_that_stopped() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", [1], stop_token_ids=(9,))
    batch = scheduler.schedule()
    assert batch is not None
    (out,) = scheduler.commit(batch, [SampledToken(request_id="a", token_id=9)])
    assert (out.token_ids, out.finish_reason, out.stop_reason) == ([9], "stop", 9)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("prompt", "fields", "code", "param", "words"),
    [
        ([], {}, "invalid_value", "prompt", "at least one token"),
        ([1, VOCAB], {}, "invalid_value", "prompt", "0..49, got 50"),
        ([-1], {}, "invalid_value", "prompt", "got -1"),
        ([1], {"stop_token_ids": (99,)}, "invalid_value", "stop_token_ids", "got 99"),
        ([1], {"logit_bias": {50: 1.0}}, "invalid_value", "logit_bias", "got 50"),
        ([1] * 80, {}, "context_length_exceeded", "prompt", "maximum context length is 80 tokens"),
        (
            [1] * 30,
            {"max_tokens": 51},
            "context_length_exceeded",
            "max_tokens",
            "maximum context length is 80",
        ),
        ([1] * 64, {}, "prompt_exceeds_kv_capacity", "prompt", "holds 64 tokens"),
    ],
)
def test_impossible_requests_are_refused(
    prompt: list[int], fields: dict[str, object], code: str, param: str, words: str
) -> None:
    scheduler = make_scheduler(max_model_len=80)
    failed = scheduler.submit(make_submit("r", prompt, **fields), now=0.0)
    assert failed is not None
    assert (failed.status, failed.code, failed.param) == (400, code, param)
    assert words in failed.message
    assert not scheduler.has_work


def test_the_largest_possible_prompts_are_served() -> None:
    scheduler, runner = make_scheduler(max_model_len=64), FakeRunner(16, 4)
    submit(scheduler, "full", [1] * 63)
    submit(scheduler, "exact", [1] * 30, max_tokens=34, ignore_eos=True)
    collector = run_until_idle(scheduler, runner)
    assert len(collector.tokens["full"]) == 1
    assert len(collector.tokens["exact"]) == 34


def test_a_full_queue_refuses_but_free_slots_are_no_queue() -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_num_queued_reqs=1)
    for i in range(3):
        submit(scheduler, f"r{i}", [1])
    failed = scheduler.submit(make_submit("r3", [1]), now=0.0)
    assert failed is not None
    assert (failed.status, failed.code) == (429, "queue_full")
    shape(scheduler)
    failed = scheduler.submit(make_submit("r3", [1]), now=0.0)
    assert failed is not None
    assert failed.code == "queue_full"
    # The server's own look after the engine is no load that a queue limits, and waits for nobody.
    submit(scheduler, "canary", [1], priority=-1)
    scheduler.abort(["r0"])
    assert "canary" in [request_id for request_id, *_ in shape(scheduler)]
    scheduler.abort(["canary"])
    submit(scheduler, "r3", [1])


def test_a_live_id_is_refused() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "r", [1])
    failed = scheduler.submit(make_submit("r", [1]), now=0.0)
    assert failed is not None
    assert (failed.status, failed.code) == (409, "duplicate_request_id")
    assert len(shape(scheduler)) == 1


def test_deadlines_end_waiting_and_running_requests() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for request_id, deadline in (("running", 5.0), ("waiting", 2.0), ("patient", None)):
        message = make_submit(request_id, [1], deadline_s=deadline)
        assert scheduler.submit(message, now=10.0) is None
    shape(scheduler)
    assert scheduler.expire(11.9) == []
    assert [(f.request_id, f.status, f.code) for f in scheduler.expire(12.0)] == [
        ("waiting", 504, "deadline_exceeded")
    ]
    assert [f.request_id for f in scheduler.expire(99.0)] == ["running"]
    check_scheduler(scheduler)
    assert shape(scheduler) == [("patient", 0, 1, True)]


def test_a_deadline_of_an_ended_request_does_not_hit_its_successor() -> None:
    scheduler = make_scheduler()
    assert scheduler.submit(make_submit("r", [1], deadline_s=1.0), now=0.0) is None
    scheduler.abort(["r"])
    assert scheduler.submit(make_submit("r", [1]), now=0.0) is None
    assert scheduler.expire(50.0) == []


@pytest.mark.parametrize(
    ("forbidden", "code", "then"),
    [(False, "numerical_error", (0, 7, False)), (True, "invalid_grammar", (8, 4, True))],
)
def test_bad_logits_fail_one_request_and_poison_no_page(
    forbidden: bool, code: str, then: tuple[int, int, bool]
) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    submit(scheduler, "bad", [1] * 12)
    submit(scheduler, "good", [2])
    shape(scheduler)  # two pages of "bad" are computed and cached
    batch = scheduler.schedule()
    assert batch is not None
    assert [s.request_id for s in batch.seqs] == ["good", "bad"]
    results = scheduler.commit(
        batch,
        [
            SampledToken(request_id="good", token_id=1),
            SampledToken(request_id="bad", token_id=0, error="why", forbidden=forbidden),
        ],
    )
    assert [(r.request_id, getattr(r, "code", None)) for r in results] == [
        ("good", None),
        ("bad", code),
    ]
    check_scheduler(scheduler)
    submit(scheduler, "again", [1] * 12)
    assert ("again", *then) in shape(scheduler)


def test_a_failed_step_fails_its_requests_only() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in ("a", "b", "c"):
        submit(scheduler, request_id, [1] * 5)
    batch = scheduler.schedule()
    assert batch is not None
    failed = scheduler.fail(batch, "broken", "engine_error", 500)
    assert [f.request_id for f in failed] == ["a", "b"]
    check_scheduler(scheduler)
    assert shape(scheduler) == [("c", 0, 5, True)]


def test_results_must_match_the_batch() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "a", [1])
    batch = scheduler.schedule()
    assert batch is not None
    with pytest.raises(ValueError, match="one token for each of 1"):
        scheduler.commit(batch, [SampledToken(request_id="b", token_id=1)])


def test_seeds_come_from_the_request_or_from_the_order_of_arrival() -> None:
    def seeds() -> list[int]:
        scheduler = make_scheduler()
        for request_id, seed in (("a", 42), ("b", None), ("c", None)):
            submit(scheduler, request_id, [1], seed=seed)
        batch = scheduler.schedule()
        assert batch is not None
        return [s.seed for s in batch.seqs]

    given, second, third = seeds()
    assert given == 42
    assert second != third
    assert seeds() == [given, second, third]


def test_history_is_given_for_penalties_only() -> None:
    scheduler = make_scheduler()
    submit(scheduler, "plain", [1, 2])
    submit(scheduler, "penalty", [3, 4], presence_penalty=0.5)
    shape(scheduler)
    batch = scheduler.schedule()
    assert batch is not None
    assert [s.history for s in batch.seqs] == [None, [3, 4, 1]]
    assert [s.num_output_tokens for s in batch.seqs] == [1, 1]


def test_stats_count_tokens_queue_and_pages() -> None:
    scheduler, runner = make_scheduler(max_num_seqs=1), FakeRunner(16, 4)
    submit(scheduler, "a", [1] * 5, max_tokens=3, ignore_eos=True)
    submit(scheduler, "b", [2] * 6, max_tokens=2, ignore_eos=True)
    batch = scheduler.schedule()
    assert batch is not None
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (1, 1, 6)
    assert (stats.num_blocks, stats.num_free_blocks, stats.num_cached_blocks) == (16, 14, 0)
    collector = Collector()
    collector.add(scheduler.commit(batch, runner.execute(batch)))
    run_until_idle(scheduler, runner, collector)
    stats = scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.num_steps) == (11, 5, 5)
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (0, 0, 0)
    assert (stats.num_free_blocks, stats.num_cached_blocks) == (16, 2)
