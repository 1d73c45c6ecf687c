"""``mmx.LLM`` around the null runner: everything but the model."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mmx.engine.null_runner
from mmx.batch import ScheduledBatch
from mmx.config import SamplingParams
from mmx.engine.null_runner import Done, NullRunner
from mmx.errors import ConfigError
from mmx.grammar.constraints import Masks
from mmx.llm import LLM
from mmx.model_path import demo_model_path

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, seed=1)


@pytest.fixture(autouse=True)
def null_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """``mmx.runner`` without torch; it takes vocabulary and end tokens from the model folder."""
    monkeypatch.setitem(sys.modules, "mmx.runner", mmx.engine.null_runner)


@pytest.fixture
def llm() -> LLM:
    return LLM()


def test_results_come_in_the_order_of_the_prompts_and_repeat(llm: LLM) -> None:
    prompts = [[i, 3] for i in range(1, 100)]
    params = [SamplingParams(seed=i, max_tokens=1 + i % 7) for i in range(len(prompts))]
    results = llm.generate(prompts, params)
    assert [r.prompt_token_ids for r in results] == prompts
    assert [len(r.token_ids) for r in results] == [p.max_tokens for p in params]
    assert {r.finish_reason for r in results} == {"length"}
    assert [r.token_ids for r in llm.generate(prompts, params)] == [r.token_ids for r in results]
    assert llm.generate([]) == []


def test_text_in_text_out(llm: LLM) -> None:
    assert llm.tokenizer is not None
    (result,) = llm.generate("Good morning", GREEDY)
    assert result.prompt == "Good morning"
    assert llm.tokenizer.decode(result.prompt_token_ids) == "Good morning"
    assert result.text == llm.tokenizer.decode(result.token_ids) != ""


def test_n_sequences_are_n_requests_with_shifted_seeds(llm: LLM) -> None:
    (result,) = llm.generate([[1, 2]], SamplingParams(n=3, seed=2**63 - 2, max_tokens=8))
    single = [
        llm.generate([[1, 2]], SamplingParams(seed=seed, max_tokens=8))[0].token_ids
        for seed in (2**63 - 2, 2**63 - 1, -(2**63))
    ]
    assert [out.index for out in result.outputs] == [0, 1, 2]
    assert [out.token_ids for out in result.outputs] == single
    assert single[0] != single[1] != single[2]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_sequence_wherever_it_is_cut(llm: LLM, include: bool) -> None:
    (full,) = llm.generate("abc", GREEDY)
    middle = len(full.text) // 2
    stop = full.text[middle : middle + 3]
    end = full.text.find(stop)
    params = SamplingParams(
        temperature=0.0, max_tokens=12, seed=1, stop=("\x00", stop), include_stop_str_in_output=include
    )
    (result,) = llm.generate("abc", params)
    assert (result.finish_reason, result.outputs[0].stop_reason) == ("stop", stop)
    assert result.text == full.text[: end + len(stop) * include]
    assert result.token_ids == full.token_ids[: len(result.token_ids)]
    assert llm.stats().num_running == 0
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_a_stop_token_is_in_the_ids_but_not_in_the_text(llm: LLM) -> None:
    assert llm.tokenizer is not None
    (full,) = llm.generate("abc", GREEDY)
    stop_id = full.token_ids[4]
    first = full.token_ids.index(stop_id)
    params = SamplingParams(temperature=0.0, max_tokens=12, seed=1, stop_token_ids=(stop_id,))
    (result,) = llm.generate("abc", params)
    assert result.token_ids == full.token_ids[: first + 1]
    assert (result.finish_reason, result.outputs[0].stop_reason) == ("stop", stop_id)
    assert result.text == llm.tokenizer.decode(full.token_ids[:first])


def test_logprobs_stand_beside_each_token(llm: LLM) -> None:
    (result,) = llm.generate([[1]], SamplingParams(max_tokens=3, logprobs=2))
    assert result.logprobs is not None
    assert [len(entry.top_ids) for entry in result.logprobs] == [2, 2, 2]
    assert llm.generate([[1]], GREEDY)[0].logprobs is None


def test_cached_tokens_are_reported_and_can_be_forgotten(llm: LLM) -> None:
    prompt = [i % 100 for i in range(300)]
    cached = [llm.generate([prompt], GREEDY)[0].num_cached_tokens for _ in range(2)]
    llm.reset_prefix_cache()
    cached.append(llm.generate([prompt], GREEDY)[0].num_cached_tokens)
    assert cached == [0, 256, 0]


def test_chat_renders_the_template(llm: LLM) -> None:
    assert llm.tokenizer is not None
    conversation = [{"role": "user", "content": "What is up?"}]
    (single,) = llm.chat(conversation, GREEDY)
    both = llm.chat([conversation, conversation], GREEDY)
    assert "What is up?" in llm.tokenizer.decode(single.prompt_token_ids)
    assert [r.prompt_token_ids for r in both] == [single.prompt_token_ids] * 2


def test_without_a_tokenizer() -> None:
    llm = LLM(skip_tokenizer_init=True)
    (result,) = llm.generate([[1, 2]], GREEDY)
    assert len(result.token_ids) == 12
    assert result.text == ""
    with pytest.raises(ValueError, match=r"prompts\[0\]: must be token ids"):
        llm.generate("text", GREEDY)
    with pytest.raises(ValueError, match=r"prompts\[1\]: stop strings need a tokenizer"):
        llm.generate([[1], [1]], [GREEDY, SamplingParams(stop=("x",))])
    with pytest.raises(ValueError, match="messages need a tokenizer"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_bad_arguments_are_named_and_leave_nothing_behind(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\]: prompt must hold at least one token"):
        llm.generate([[1], []], GREEDY)
    with pytest.raises(ValueError, match=r"prompts\[0\]: must be a string or a list of ids, got list"):
        llm.generate([["a"]], GREEDY)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"prompts\[0\]: must be a string or a list of ids, got bytes"):
        llm.generate([b"text"], GREEDY)
    with pytest.raises(ValueError, match="sampling_params must be SamplingParams or a list of them"):
        llm.generate([[1]], {"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"messages\[0\]: must be an object, got str"):
        llm.chat({"role": "user", "content": "one message"}, GREEDY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sampling_params must be one or 2"):
        llm.generate([[1], [2]], [GREEDY])
    with pytest.raises(ValueError, match=r"prompts\[0\]: the maximum context length is"):
        llm.generate([[1]], SamplingParams(max_tokens=10**9))
    assert llm.stats().num_running == llm.stats().num_waiting == 0
    assert llm.generate([[1]], GREEDY)[0].finish_reason == "length"


def test_an_interrupted_call_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: NullRunner, batch: object, masks: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NullRunner, "launch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[1], [2]], GREEDY)
    assert [r.finish_reason for r in llm.generate([[1], [2]], GREEDY)] == ["length", "length"]


def test_an_interrupt_waits_for_the_end_of_the_step(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, ended = NullRunner.launch, []

    def interrupted(self: NullRunner, batch: ScheduledBatch, masks: Masks) -> Done:
        signal.raise_signal(signal.SIGINT)
        flight = launch(self, batch, masks)
        ended.append(batch.step)
        return flight

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(NullRunner, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[1], [2]], GREEDY)
    assert len(ended) == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert llm.generate([[1]], GREEDY)[0].finish_reason == "length"


def test_a_step_in_flight_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that tell the results of a step to nobody seem to be stuck in it."""
    launch, waited = NullRunner.launch, []

    def watched(self: NullRunner, batch: ScheduledBatch, masks: Masks) -> Any:
        flight = launch(self, batch, masks)
        return SimpleNamespace(result=lambda: waited.append(batch.step) or flight.result())

    monkeypatch.setattr(NullRunner, "launch", watched)
    llm = LLM()
    llm._engine.overlaps = True
    free = llm.generate([[1]], GREEDY)[0].token_ids
    stopping = SamplingParams(temperature=0.0, max_tokens=12, seed=1, stop_token_ids=(free[4],))
    assert llm.generate([[1]], stopping)[0].finish_reason == "stop"
    assert waited == list(range(1, llm.stats().num_steps + 1))


def test_threads_wait_for_each_other(llm: LLM) -> None:
    expected = llm.generate([[1, 2]], GREEDY)[0].token_ids
    with ThreadPoolExecutor(4) as pool:
        outputs = pool.map(lambda _: llm.generate([[1, 2]], GREEDY)[0].token_ids, range(16))
    assert list(outputs) == [expected] * 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", value) for value in ("5", 2.5, True)),
        *(("stop", value) for value in ("abc", (5,), None)),
        *(("stop_token_ids", value) for value in (5, ["a"])),
        *(("logit_bias", value) for value in ({"5": 1.0}, {5: "1"}, [5], None)),
        *(("temperature", value) for value in (None, "1", True)),
        *(("logprobs", 1.5), ("seed", "a"), ("top_k", None), ("n", 2.5), ("ignore_eos", "no")),
    ],
)
def test_parameters_of_a_wrong_type_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^Expected .* - at .*\$\.{field}"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": "8"}, r"Expected `int`, got `str` - at `\$\.max_num_seqs`"),
        ({"kv_cache_bytes": 4e6}, r"Expected `int \| null`, got `float` - at `\$\.kv_cache_bytes`"),
        ({"enable_prefix_caching": "no"}, r"Expected `bool`, got `str` - at `\$\.enable_prefix_caching`"),
        ({"tensor_parallel_size": "2"}, r"Expected `int`, got `str` - at `\$\.parallel\.tensor_parallel"),
        ({"num_seqs": 8}, "unknown field `num_seqs`"),
        ({"max_num_seqs": 0}, "^max_num_seqs must be at least 1, got 0$"),
    ],
)
def test_options_of_a_wrong_type_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(**options)


def test_a_fault_of_the_engine_is_no_fault_of_the_caller(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: NullRunner, batch: object, masks: object) -> None:
        raise ArithmeticError("bad kernel")

    monkeypatch.setattr(NullRunner, "launch", fail)
    with pytest.raises(RuntimeError, match=r"prompts\[0\]: .*the engine failed"):
        llm.generate([[1]], GREEDY)


def test_a_model_must_be_a_checkpoint_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model must be a checkpoint folder"):
        LLM(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"with a config\.json"):
        LLM(str(tmp_path))
    assert (demo_model_path() / "config.json").is_file()
