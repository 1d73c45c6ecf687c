"""Prompts: lengths, shared prefixes, repeatability, files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.helpers import TOKENIZER, options
from mmx.bench.dataset import Sample, length_range
from mmx.bench.serve import make_samples


def ids_of(sample: Sample) -> list[int]:
    assert isinstance(sample.prompt, list)
    return sample.prompt


def random(*flags: str) -> list[Sample]:
    return make_samples(options("--num-prompts", "20", *flags), TOKENIZER)


def test_ids_have_the_asked_length_and_a_shared_prefix() -> None:
    samples = random("--tokenize-on-client", "--random-ids", "--random-prefix-len", "8", "--input-len", "30")
    prompts = [ids_of(sample) for sample in samples]
    assert {len(prompt) for prompt in prompts} == {38}
    assert {sample.input_len for sample in samples} == {38}
    assert {sample.output_len for sample in samples} == {128}
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 1
    assert len({tuple(prompt[8:]) for prompt in prompts}) == 20
    assert not {i for prompt in prompts for i in prompt} & set(TOKENIZER.control_ids.values())


def test_neighbouring_ids_without_random_ids() -> None:
    for sample in random("--tokenize-on-client", "--input-len", "30"):
        steps = Counter(b - a for a, b in zip(ids_of(sample), ids_of(sample)[1:], strict=False))
        assert steps[1] >= 20


@pytest.mark.parametrize("flags", [(), ("--random-ids",)])
def test_text_has_as_many_tokens_as_it_says(flags: tuple[str, ...]) -> None:
    for sample in random("--input-len", "64", *flags):
        assert isinstance(sample.prompt, str)
        assert len(TOKENIZER.encode_plain(sample.prompt)) == sample.input_len == 64


def test_seed_decides() -> None:
    assert random("--seed", "3") == random("--seed", "3")
    assert random("--seed", "3") != random("--seed", "4")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--random-range-ratio", "0"), (100, 100)),
        (("--random-range-ratio", "0.25"), (75, 125)),
        (("--random-range-ratio", "0.333"), (66, 134)),
        (("--random-range-ratio", "1"), (1, 200)),
        (("--random-range-ratio", "0.5", "--range-ratio-style", "trt"), (50, 100)),
        (("--random-range-ratio", "0", "--range-ratio-style", "trt"), (1, 100)),
    ],
)
def test_length_range(flags: tuple[str, ...], expected: tuple[int, int]) -> None:
    assert length_range(options(*flags), 100) == expected


def test_lengths_vary_within_the_range() -> None:
    samples = random("--num-prompts", "200", "--random-range-ratio", "0.1", "--input-len", "50",
                     "--output-len", "20", "--tokenize-on-client")  # fmt: skip
    assert {sample.input_len for sample in samples} == set(range(45, 56))
    assert {sample.output_len for sample in samples} == set(range(18, 23))


def test_prefix_repetition() -> None:
    samples = random("--dataset-name", "prefix_repetition", "--tokenize-on-client",
                     "--prefix-repetition-prefix-len", "12", "--prefix-repetition-suffix-len", "5",
                     "--prefix-repetition-num-prefixes", "6",
                     "--prefix-repetition-output-len", "9")  # fmt: skip
    prefixes = Counter(tuple(ids_of(sample)[:12]) for sample in samples)
    assert set(prefixes.values()) == {3}
    assert len(prefixes) == 6
    assert {(sample.input_len, sample.output_len) for sample in samples} == {(17, 9)}
    order = [tuple(ids_of(sample)[:12]) for sample in samples]
    assert order != sorted(order, key=order.index), "prompts of one prefix must not follow each other"


def custom(path: Path, lines: list[object], *flags: str) -> list[Sample]:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return make_samples(options("--dataset-name", "custom", "--dataset-path", str(path), *flags), TOKENIZER)


def test_custom(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    lines = [{"prompt": "hello there", "output_tokens": 7}, {"messages": messages, "tools": [{"t": 1}]},
             {"body": {"messages": messages, "top_p": 0.5}}]  # fmt: skip
    samples = custom(tmp_path / "c.jsonl", lines, "--backend", "openai-chat", "--custom-output-len", "33")
    length = len(TOKENIZER.encode_plain("hello there"))
    assert samples == [
        Sample(prompt="hello there", input_len=length, output_len=7),
        Sample(messages=messages, tools=[{"t": 1}], output_len=33),
        Sample(body={"messages": messages, "top_p": 0.5}, output_len=33),
    ]
    assert len(custom(tmp_path / "c.jsonl", lines[:1] * 5, "--num-prompts", "2")) == 2


def test_custom_rendered_as_chat(tmp_path: Path) -> None:
    (sample,) = custom(tmp_path / "c.jsonl", [{"prompt": "hello"}], "--use-chat-template")
    assert sample.input_len == len(ids_of(sample)) > len(TOKENIZER.encode_plain("hello"))
    assert set(ids_of(sample)) & set(TOKENIZER.control_ids.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "body": {}}, "c.jsonl:2: expected one of prompt, messages and body"),
        ({"output_tokens": 3}, "c.jsonl:2: expected one of prompt, messages and body"),
        ({"promt": "a"}, "c.jsonl:2: .*unknown field `promt`"),
        ({"messages": []}, "c.jsonl:2: messages need --backend openai-chat"),
        ({"prompt": "a", "output_tokens": 0}, "c.jsonl:2: .*output_tokens"),
    ],
)
def test_custom_names_the_wrong_line(line: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        custom(tmp_path / "c.jsonl", [{"prompt": "fine"}, line])


def test_sharegpt(tmp_path: Path) -> None:
    def talk(question: str, reply: str) -> dict[str, object]:
        return {
            "id": "x",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}],
        }

    good = [
        talk(f"Please tell me about number {i} now.", "Number is a number, as you know." * 2)
        for i in range(5)
    ]
    bad = [talk("hi", "Well, hello there my friend."), talk("Tell me all about it, please.", "no"),
           talk("word and " * 1100, "Number is a number."),
           {"conversations": [{"value": "alone"}]}]  # fmt: skip
    path = tmp_path / "s.json"
    path.write_text(json.dumps([*bad, *good]))
    flags = ("--dataset-name", "sharegpt", "--dataset-path", str(path))
    samples = make_samples(options(*flags), TOKENIZER)
    questions = [g["conversations"][0]["value"] for g in good]  # type: ignore[index]
    assert sorted(str(sample.prompt) for sample in samples) == sorted(questions)
    reply_len = len(TOKENIZER.encode_plain("Number is a number, as you know." * 2))
    assert {sample.output_len for sample in samples} == {reply_len}
    fixed = make_samples(options(*flags, "--sharegpt-output-len", "5", "--num-prompts", "2"), TOKENIZER)
    assert [sample.output_len for sample in fixed] == [5, 5]


def test_random_needs_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="--tokenizer: random needs a checkpoint folder"):
        make_samples(options(), None)
