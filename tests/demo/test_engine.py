"""The engine and transformers continue 50 prompts alike in fp32, thinking and tools included."""

from __future__ import annotations

import random

import torch

from demo.oracle import transformers_model
from mmx import LLM, SamplingParams
from mmx.demo.train.data import tools
from mmx.demo.train.data.dialogue import ADAPTIVE, DISABLED, ENABLED, Turn
from mmx.demo.train.data.mix import ordinary_turn
from mmx.demo.train.export import load_shape, load_weights
from mmx.demo.train.model import Model
from mmx.model_path import demo_model_path

GREEDY = SamplingParams(temperature=0.0, max_tokens=48)


def test_greedy_tokens_equal_transformers() -> None:
    rng = random.Random(11)
    llm = LLM(device="cpu", dtype="float32")
    model = Model(load_shape(demo_model_path())).eval()
    load_weights(model, demo_model_path() / "model.safetensors")
    oracle = transformers_model(model)
    num_calls = num_thoughts = 0
    for i in range(50):
        mode = (ADAPTIVE, ENABLED, DISABLED)[i % 3]
        declared, asks = tools.toolbox(rng, 3)
        turn: Turn = rng.choice(asks)(rng) if i % 2 else ordinary_turn(rng)
        output = llm.chat(
            [{"role": "user", "content": turn.user}],
            GREEDY,
            tools=[{"type": "function", "function": dict(tool)} for tool in declared] if i % 2 else None,
            chat_template_kwargs={"thinking_mode": mode},
            use_tqdm=False,
        )[0]
        prompt, written = output.prompt_token_ids, output.token_ids
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt + written])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == written, turn.user
        text = llm.tokenizer.decode(written, skip_special_tokens=False) if llm.tokenizer else ""
        num_calls += "<invoke name=" in text
        num_thoughts += "</mm:think>" in text
    assert num_calls >= 15
    assert num_thoughts >= 15
