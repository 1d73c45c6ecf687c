"""Faults of a step that is launched ahead: who fails, with which words, and that the rest goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.driving import collect
from mmx import LLM, SamplingParams
from mmx.config import EngineConfig
from mmx.engine.channel import LocalChannel
from mmx.engine.client import EngineClient
from mmx.engine.engine import Engine
from mmx.errors import DeviceLostError
from mmx.layers import ForwardBatch
from mmx.protocol import Failed, Submit, TokenOut
from mmx.runner import ModelRunner, build_runner
from models.tiny import write_tiny_checkpoint

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PROMPT, POISON = [5, 6, 7], [9] * 20
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


class Faulty(torch.nn.Module):
    """A model that does ``fault`` in steps with a prompt as long as POISON."""

    def __init__(self, model: torch.nn.Module, fault: Callable[[], object]) -> None:
        super().__init__()
        self.model = model
        self.ranks = model.ranks
        self.fault = fault

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        if batch.max_seqlen_q == len(POISON):
            self.fault()
        logits: torch.Tensor = self.model(batch)
        return logits


def out_of_memory(device: str) -> None:
    if device == "cpu":
        raise MemoryError("no memory")
    torch.empty(1 << 50, dtype=torch.uint8, device=device)


def refused_launch(device: str) -> None:
    if device == "cpu":
        raise RuntimeError("rms_norm: launch failed: invalid argument")
    rows = torch.ones(1, 16, device=device).expand(20 << 30, 16)  # more blocks than a launch can have
    with pytest.raises(RuntimeError, match="rms_norm: launch failed") as refusal:
        torch.ops.mmx.rms_norm(rows, rows, rows[0], 1e-6, False)
    raise refusal.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "m3", "m3", torch.float32, seed=2)


def make_engine(folder: Path, device: str, fault: Callable[[str], None]) -> tuple[Engine, LocalChannel]:
    config = EngineConfig(model=str(folder), device=device, kv_cache_bytes=4 << 20)
    channel = LocalChannel()
    runner = build_runner(config, lambda phase, done: None)
    runner.model = Faulty(runner.model, lambda: fault(device))  # type: ignore[assignment]
    engine = Engine(config, runner, channel)
    engine.overlaps = True
    return engine, channel


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("fault", "code", "status", "words"),
    [
        (out_of_memory, "out_of_memory", 503, "ran out of memory"),
        (refused_launch, "engine_error", 500, "the engine failed in this step"),
    ],
)
def test_a_prompt_that_can_not_be_launched_fails_alone(
    folder: Path, device: str, fault: Callable[[str], None], code: str, status: int, words: str
) -> None:
    """The sequences that decode in the same step, one of them fed by a step in flight, lose nothing."""
    llm = LLM(str(folder), device=device, skip_tokenizer_init=True, kv_cache_bytes=4 << 20)
    expected = llm.generate([PROMPT], PARAMS, use_tqdm=False)[0].token_ids
    engine, channel = make_engine(folder, device, fault)
    channel.inbox.append(Submit(request_id="mate", prompt_token_ids=PROMPT, params=PARAMS))
    for _ in range(3):
        engine.step()
    channel.inbox.append(Submit(request_id="bad", prompt_token_ids=POISON, params=PARAMS))
    channel.inbox.append(Submit(request_id="bad mate", prompt_token_ids=PROMPT, params=PARAMS))
    channel.inbox.append(Submit(request_id="short", prompt_token_ids=[3], params=PARAMS))
    found: dict[str, list[int]] = {}
    failures = []
    for item in collect(engine, channel):
        if isinstance(item, Failed):
            failures.append(item)
        else:
            found.setdefault(item.request_id, []).extend(item.token_ids)
    assert [(f.request_id, f.code, f.status) for f in failures] == [
        ("bad", code, status),
        ("bad mate", code, status),
    ]
    assert all(words in failure.message for failure in failures)
    assert found["mate"] == expected
    assert len(found["short"]) == PARAMS.max_tokens
    assert engine.scheduler.blocks.num_available == engine.scheduler.blocks.num_blocks
    channel.inbox.append(Submit(request_id="later", prompt_token_ids=PROMPT, params=PARAMS))
    assert sum(len(item.token_ids) for item in collect(engine, channel) if isinstance(item, TokenOut)) == 12


@pytest.mark.parametrize("device", DEVICES)
def test_a_poisoned_request_fails_alone_and_is_not_reused(folder: Path, device: str) -> None:
    """NaN in the logits of one sequence of a batch, whose next step is in flight already."""
    engine, channel = make_engine(folder, device, lambda device: None)
    runner = engine.runner
    assert isinstance(runner, ModelRunner)
    clean = runner.forward

    def poisoned(part):  # type: ignore[no-untyped-def]
        logits = clean(part)
        if part.batch.seqs[-1].token_ids == POISON:
            logits[-1, 17] = float("nan")
        return logits

    runner.forward = poisoned  # type: ignore[method-assign]
    channel.inbox.append(Submit(request_id="mate", prompt_token_ids=PROMPT, params=PARAMS))
    channel.inbox.append(Submit(request_id="bad", prompt_token_ids=POISON, params=PARAMS))
    items = list(collect(engine, channel))
    (failure,) = (item for item in items if isinstance(item, Failed))
    assert (failure.request_id, failure.code, failure.status) == ("bad", "numerical_error", 500)
    assert sum(len(item.token_ids) for item in items if isinstance(item, TokenOut)) == 12
    assert engine.scheduler.blocks.num_reusable == 1, "the one full page of the mate"


def test_a_device_that_is_lost_ends_the_engine(folder: Path) -> None:
    def lost(device: str) -> None:
        raise DeviceLostError("the device does not answer")

    engine, channel = make_engine(folder, "cpu", lost)
    channel.inbox.append(Submit(request_id="bad", prompt_token_ids=POISON, params=PARAMS))
    with pytest.raises(DeviceLostError):
        engine.run()


@pytest.mark.cuda
def test_a_fault_inside_a_kernel_ends_the_process_with_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))

    async def test() -> None:
        config = EngineConfig(model=str(folder), device="cuda", kv_cache_bytes=4 << 20)
        client = await EngineClient.start(config, runner="engine.broken_gpu")
        await client.wait_ready()
        mate = client.submit(Submit(request_id="mate", prompt_token_ids=PROMPT, params=PARAMS))
        assert len(await asyncio.wait_for(mate.take(), 20)) > 0
        bad = client.submit(Submit(request_id="bad", prompt_token_ids=POISON, params=PARAMS))
        (failure,) = await asyncio.wait_for(bad.take(), 20)
        assert isinstance(failure, Failed) and failure.status == 503
        assert client.dead is not None and "the GPU has failed" in client.dead.message
        assert await asyncio.wait_for(client.process.wait(), 20) == 1

    asyncio.run(test())
