"""The shipped checkpoint: size, names, and answers, by the plain torch model and equal in transformers."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer

from demo.oracle import transformers_model
from mmx.demo.evaluate import Item, accuracy, make_item, needle_items
from mmx.demo.train.data import arithmetic, facts, strings, tools
from mmx.demo.train.data.dialogue import ADAPTIVE, DISABLED, ENABLED, Encoder, Reply, Turn
from mmx.demo.train.export import load_shape, load_weights
from mmx.demo.train.model import RANDOM, TRAINED, Model
from mmx.model_path import demo_model_path


@cache
def _encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(demo_model_path() / "tokenizer.json")))


@cache
def _model() -> Model:
    model = Model(load_shape(demo_model_path())).eval()
    load_weights(model, demo_model_path() / "model.safetensors")
    return model


def _score(items: list[Item], selector: str = TRAINED) -> float:
    return accuracy(_model(), items, _encoder().pad, selector, 4096)


def test_size() -> None:
    assert (demo_model_path() / "model.safetensors").stat().st_size <= 14_000_000
    assert 4_000_000 <= sum(p.numel() for p in _model().parameters()) <= 7_000_000


def test_first_things_a_person_tries() -> None:
    from mmx.demo.train.data.chat import ABOUT, HELLO

    france = next(c for c in facts.COUNTRIES if c.name == "France")
    turns = [
        Turn("hi", Reply(HELLO, "The user greets me.")),
        Turn("who are you?", Reply(ABOUT, "The user asks who I am.")),
        arithmetic.sum_turn(17, "+", 25, "{a} {op} {b}"),
        facts.capital_turn(france, "What is the capital of {}?", chinese=False),
    ]
    modes = (ADAPTIVE, ENABLED, DISABLED)
    assert _score([make_item(_encoder(), turn, mode) for turn in turns for mode in modes]) == 1.0


@pytest.mark.parametrize(
    ("ask", "city", "chinese"),
    [("请查询{}的天气。", "上海", True), ("Please query the weather in {}.", "Shanghai", False)],
)
def test_weather_tool(ask: str, city: str, chinese: bool) -> None:
    tool = {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    turn = tools.weather_turn(random.Random(1), tool, [city], ask, chinese)
    items = [
        make_item(_encoder(), turn, mode, [tool], closing)
        for mode in (ADAPTIVE, ENABLED, DISABLED)
        for closing in (False, True)
    ]
    assert _score(items) == 1.0


def test_needles_need_the_trained_selector() -> None:
    torch.manual_seed(0)
    items = needle_items(_encoder(), random.Random(2), 2, 3072)
    assert _score(items) == 1.0
    assert _score(items, RANDOM) < 1.0


def test_transformers_gives_the_same_greedy_tokens() -> None:
    rng, encoder, model = random.Random(3), _encoder(), _model()
    oracle = transformers_model(model)
    items = []
    for _ in range(12):
        declared, asks = tools.toolbox(rng, 2)
        mode = rng.choice([ADAPTIVE, ENABLED, DISABLED])
        items.append(make_item(encoder, rng.choice(asks)(rng), mode, declared, closing=True))
        task = rng.choice([arithmetic.arithmetic, facts.fact, facts.capital, strings.string_task])
        items.append(make_item(encoder, task(rng), mode))
    with torch.no_grad():
        for item in items:
            tokens = torch.tensor([item.ids])
            ours = model.logits(model(tokens, TRAINED)[0])
            theirs = oracle(tokens).logits[0]
            assert (ours - theirs).abs().max() < 1e-2
            written = [i - 1 for i, scored in enumerate(item.scored) if scored]
            assert ours[written].argmax(-1).tolist() == theirs[written].argmax(-1).tolist()
