"""The loop around scheduler and runner, in one process."""

from __future__ import annotations

import pytest

from engine.driving import collect
from engine.fault_runner import TRIGGER, FaultRunner
from mmx.config import EngineConfig, SamplingParams
from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.errors import DeviceLostError
from mmx.protocol import Abort, Failed, ResetPrefixCache, Shutdown, StepOutput, Submit, TokenOut
from unit.consistency import check_scheduler


def make_engine(fault: str = "none", **config: int) -> tuple[Engine, LocalChannel]:
    channel = LocalChannel()
    return Engine(EngineConfig(model="null", **config), FaultRunner(fault), channel), channel


def message(request_id: str, prompt: list[int], max_tokens: int = 3, **fields: float) -> Submit:
    params = SamplingParams(max_tokens=max_tokens)
    return Submit(request_id=request_id, prompt_token_ids=prompt, params=params, **fields)


def drain(engine: Engine, channel: LocalChannel) -> tuple[dict[str, list[TokenOut]], list[Failed]]:
    """Step until idle; token outputs by request, and failures."""
    outputs: dict[str, list[TokenOut]] = {}
    failures = []
    for item in collect(engine, channel):
        if isinstance(item, Failed):
            failures.append(item)
        else:
            outputs.setdefault(item.request_id, []).append(item)
    return outputs, failures


def test_a_request_lives_from_submit_to_its_finish_reason() -> None:
    engine, channel = make_engine()
    channel.inbox.append(message("a", [1, 2]))
    outputs, failures = drain(engine, channel)
    assert [out.finish_reason for out in outputs["a"]] == [None, None, "length"]
    assert [out.num_cached_tokens for out in outputs["a"]] == [0, None, None]
    assert failures == []


def test_ready_repeats_what_runner_and_scheduler_say() -> None:
    engine, _ = make_engine(max_num_seqs=5)
    ready = engine.ready()
    assert (ready.block_size, ready.vocab_size) == (engine.runner.block_size, engine.runner.vocab_size)
    assert (ready.max_num_seqs, ready.max_num_queued_reqs) == (5, 20)


def test_every_step_reports_its_size_and_the_gauges() -> None:
    engine, channel = make_engine(max_num_batched_tokens=4)
    channel.inbox.append(message("a", [1] * 6, max_tokens=1))
    engine.step()
    engine.step()
    first, second = channel.outbox
    assert isinstance(first, StepOutput)
    assert isinstance(second, StepOutput)
    assert (first.step_tokens, len(first.outputs), first.stats.num_running) == (4, 0, 1)
    assert (second.step_tokens, len(second.outputs), second.stats.num_running) == (2, 1, 0)
    assert first.step_seconds > 0.0


def test_a_runner_exception_fails_the_batch_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    engine, channel = make_engine("raise", max_num_seqs=2)
    channel.inbox += [message("bad", [TRIGGER]), message("mate", [1]), message("later", [2])]
    outputs, failures = drain(engine, channel)
    assert [(f.request_id, f.status, f.code) for f in failures] == [
        ("bad", 500, "engine_error"),
        ("mate", 500, "engine_error"),
    ]
    assert "kernel" not in failures[0].message, "internals stay in the log"
    assert "a kernel refused its input" in caplog.text
    assert outputs["later"][-1].finish_reason == "length"


def test_a_lost_device_ends_the_engine() -> None:
    engine, channel = make_engine("device")
    channel.inbox.append(message("a", [TRIGGER]))
    with pytest.raises(DeviceLostError):
        engine.run()


def test_refusals_and_deadlines_reach_the_front_end() -> None:
    engine, channel = make_engine()
    channel.inbox += [message("empty", []), message("late", [1], deadline_s=0.0), message("fine", [1])]
    outputs, failures = drain(engine, channel)
    assert {f.request_id: f.code for f in failures} == {"empty": "invalid_value", "late": "deadline_exceeded"}
    assert list(outputs) == ["fine"]


def test_an_abort_frees_the_pages_within_one_step() -> None:
    engine, channel = make_engine()
    channel.inbox += [message("a", [1] * 300, max_tokens=100), message("b", [2], max_tokens=2)]
    engine.step()
    channel.inbox.append(Abort(request_ids=["a", "unknown"]))
    engine.step()
    last = channel.outbox[-1]
    assert isinstance(last, StepOutput)
    assert (last.stats.num_running, last.stats.num_free_blocks) == (0, last.stats.num_blocks)


def test_reset_prefix_cache_is_seen_in_the_gauges() -> None:
    engine, channel = make_engine()
    channel.inbox.append(message("a", [1] * 300, max_tokens=1))
    drain(engine, channel)
    assert engine.scheduler.stats().num_cached_blocks == 2
    channel.inbox.append(ResetPrefixCache())
    engine.step()
    last = channel.outbox[-1]
    assert isinstance(last, StepOutput)
    assert last.stats.num_cached_blocks == 0


def test_shutdown_ends_the_loop_and_releases_everything() -> None:
    engine, channel = make_engine()
    channel.inbox += [message("a", [1], max_tokens=1000), Shutdown()]
    engine.run()
    assert engine.stopped
    assert not engine.scheduler.has_work
    check_scheduler(engine.scheduler)
