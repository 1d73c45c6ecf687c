"""Constrained answers of whole engines with random weights, many at once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from grammar.helpers import Drawn, calls, check, document, model, parameters, read, tool
from mmx.config import EngineConfig, SamplingParams
from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.grammar.build import Family
from mmx.grammar.constraint import Start
from mmx.protocol import Constraint, Failed, StepOutput, Submit
from mmx.runner import build_runner
from models.tiny import write_tiny_checkpoint

LIMIT = 600
STARTS: dict[Family, list[Start]] = {"m2": ["thought", "grammar"], "m3": ["thought", "choice", "grammar"]}
NUM_CASES = [pytest.param(12, id="few"), pytest.param(125, id="many", marks=pytest.mark.slow)]


class Case:
    """One request with the judgement of its answer."""

    def __init__(self, family: Family, kind: str, seed: int) -> None:
        rng = random.Random(seed)
        self.model = model(family)
        self.start: Start = rng.choice(STARTS[family])
        self.schemas = {"f": parameters(rng), "g": parameters(rng)}
        self.tools = [tool(name, schema) for name, schema in self.schemas.items()]
        self.kind = kind
        self.constraint: Constraint = (
            calls(self.model, self.tools, self.start)
            if kind == "calls"
            else document(self.model, self.schemas["f"], self.start)
        )
        params = SamplingParams(
            temperature=rng.choice([0.0, 1.0, 2.0]),
            max_tokens=LIMIT,
            seed=seed,
            repetition_penalty=rng.choice([1.0, 1.1]),
        )
        self.submit = Submit(
            request_id=f"{kind}-{seed}",
            prompt_token_ids=[1 + seed % 50, *range(60, 60 + seed % 20)],
            params=params,
            constraint=self.constraint,
        )

    def check(self, token_ids: list[int]) -> None:
        answer = read(self.model, self.start, Drawn(token_ids, True), self.tools)
        if self.kind == "document":
            check(json.loads(answer.content or ""), self.schemas["f"])
            return
        assert answer.tool_calls
        assert not answer.content
        for call in answer.tool_calls:
            check(json.loads(call.arguments), self.schemas[call.name])


@pytest.fixture(scope="module", params=["m2", "m3"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Engine]:
    family: Family = request.param
    folder = _folder(family, tmp_path_factory.mktemp(family))
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", max_num_seqs=32,
        max_model_len=1024, kv_cache_bytes=64 << 20,
    )  # fmt: skip
    runner = build_runner(config, lambda phase, done: None)
    return family, Engine(config, runner, LocalChannel())


def _folder(family: Family, folder: Path) -> Path:
    """A tiny random checkpoint with the tokenizer of the family."""
    m = model(family)
    change = {"vocab_size": m.tokenizer.vocab_size}
    write_tiny_checkpoint(folder, family, variant=change, eos_token_id=m.tokenizer.eos_token_ids[0])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((m.folder / name).read_text())
    return folder


def answers(engine: Engine, submits: list[Submit]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Token ids (without the end token) and finish reasons by request."""
    channel = engine.channel
    assert isinstance(channel, LocalChannel)
    channel.inbox.extend(submits)
    ids: dict[str, list[int]] = {submit.request_id: [] for submit in submits}
    reasons: dict[str, str] = {}
    while len(reasons) < len(submits):
        engine.step()
        for message in channel.outbox:
            assert not isinstance(message, Failed), message
            for out in message.outputs if isinstance(message, StepOutput) else ():
                ids[out.request_id] += out.token_ids
                if out.finish_reason is not None:
                    reasons[out.request_id] = out.finish_reason
        channel.outbox.clear()
    return {name: found[:-1] if reasons[name] == "stop" else found for name, found in ids.items()}, reasons


@pytest.mark.parametrize("count", NUM_CASES)
@pytest.mark.parametrize("kind", ["calls", "document"])
def test_answers_of_random_weights_are_valid(engine: tuple[Family, Engine], kind: str, count: int) -> None:
    family, running = engine
    cases = {case.submit.request_id: case for case in (Case(family, kind, seed) for seed in range(count))}
    ids, reasons = answers(running, [case.submit for case in cases.values()])
    for name, reason in reasons.items():
        if reason == "stop":
            cases[name].check(ids[name])
    num_cut = sum(reason == "length" for reason in reasons.values())
    assert num_cut <= count // 100, f"{num_cut} of {count} answers reached their limit"
    assert not running.scheduler.has_work


def test_a_mask_is_the_same_alone_and_among_others(engine: tuple[Family, Engine]) -> None:
    """Greedy answers do not depend on their batch mates, constrained or not."""
    family, running = engine
    case = Case(family, "document", 7)
    greedy = SamplingParams(temperature=0.0, max_tokens=40)
    alone = Submit(request_id="a", prompt_token_ids=[5, 6], params=greedy, constraint=case.constraint)
    free = [Submit(request_id=f"free{i}", prompt_token_ids=[9, i], params=greedy) for i in range(3)]
    expected, _ = answers(running, [alone])
    crowd, _ = answers(running, [*free, alone])
    assert crowd["a"] == expected["a"]
    unconstrained, _ = answers(running, free)
    assert {name: crowd[name] for name in unconstrained} == unconstrained


def test_a_grammar_that_can_not_be_used_fails_its_request_alone(engine: tuple[Family, Engine]) -> None:
    _, running = engine
    channel = running.channel
    assert isinstance(channel, LocalChannel)
    greedy = SamplingParams(temperature=0.0, max_tokens=4)
    broken = Constraint(grammar="start: (")
    channel.inbox += [
        Submit(request_id="broken", prompt_token_ids=[5], params=greedy, constraint=broken),
        Submit(request_id="fine", prompt_token_ids=[5], params=greedy),
    ]
    failed: list[Failed] = []
    finished: set[str] = set()
    while not (failed and finished):
        running.step()
        failed += [m for m in channel.outbox if isinstance(m, Failed)]
        outs = [out for m in channel.outbox if isinstance(m, StepOutput) for out in m.outputs]
        finished |= {out.request_id for out in outs if out.finish_reason is not None}
        channel.outbox.clear()
    assert [(f.request_id, f.status, f.code) for f in failed] == [("broken", 400, "invalid_grammar")]
    assert finished == {"fine"}


def test_no_allowed_token_fails_the_request_with_the_reason(engine: tuple[Family, Engine]) -> None:
    family, running = engine
    channel = running.channel
    assert isinstance(channel, LocalChannel)
    letter = model(family).tokenizer.encode_plain("q")[0]
    constraint = Constraint(grammar='start: "x"\n', allowed_ids=[letter])
    params = SamplingParams(max_tokens=4)
    channel.inbox.append(
        Submit(request_id="none", prompt_token_ids=[5], params=params, constraint=constraint)
    )
    failed: list[Failed] = []
    while not failed:
        running.step()
        failed += [m for m in channel.outbox if isinstance(m, Failed)]
        channel.outbox.clear()
    assert "no token satisfies all constraints" in failed[0].message
    assert (failed[0].code, failed[0].status) == ("invalid_grammar", 400)  # the request's own fault
