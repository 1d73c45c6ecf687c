"""Training texts are what the server renders: same characters, same token ids."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tokenizers

from mmx.demo.train.data import arithmetic, facts, tools
from mmx.demo.train.data.dialogue import (
    ADAPTIVE,
    DISABLED,
    ENABLED,
    Call,
    Conversation,
    Encoder,
    Reply,
    Turn,
    render,
)
from mmx.demo.train.data.mix import make_batch
from mmx.demo.train.tokenizer import ADDED
from mmx.model_path import demo_model_path
from mmx.tokenizer import ChatTemplate, Tokenizer


def _message(reply: Reply, mode: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if mode == ENABLED or (mode == ADAPTIVE and reply.thinks):
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"type": "function", "id": f"c{i}", "function": {"name": c.name, "arguments": dict(c.arguments)}}
            for i, c in enumerate(reply.calls)
        ]
    return message


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": conversation.developer}]
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.user})
        messages.append(_message(turn.reply, conversation.mode))
        if turn.closing is not None:
            for i, result in enumerate(turn.results):
                messages.append({"role": "tool", "tool_call_id": f"c{i}", "content": result})
            messages.append(_message(turn.closing, conversation.mode))
    return messages


def _conversations() -> list[Conversation]:
    rng = random.Random(7)
    nested = Call("plan", {"stops": [{"name": "Bergen", "nights": 2}], "car": False, "note": None})
    made = [Conversation(ADAPTIVE, turns=[Turn("Go.", Reply("Planning.", "Two.", calls=[nested]))])]
    for mode in (ADAPTIVE, ENABLED, DISABLED):
        declared, asks = tools.toolbox(rng, 4)
        turns = [rng.choice(asks)(rng) for _ in range(6)]
        turns += [arithmetic.arithmetic(rng), facts.capital(rng), facts.fact(rng)]
        made.append(Conversation(mode, "Answer briefly.", declared, turns))
    return made


@pytest.mark.parametrize("conversation", _conversations(), ids=["nested", ADAPTIVE, ENABLED, DISABLED])
def test_equals_the_chat_template(conversation: Conversation) -> None:
    folder = demo_model_path()
    tokenizer = Tokenizer(folder)
    template = ChatTemplate.from_checkpoint(
        folder, markers=tokenizer.control_ids, variables=tokenizer.special_token_texts
    )
    rendered = template.render(
        _messages(conversation),
        tools=[{"type": "function", "function": dict(tool)} for tool in conversation.tools] or None,
        add_generation_prompt=False,
        template_kwargs={"thinking_mode": conversation.mode},
    )
    served = tokenizer.encode_rendered(rendered)
    encoder = Encoder(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
    trained = encoder.header(conversation)
    for turn in conversation.turns:
        trained += encoder.turn(turn, conversation.mode)[0]
    assert tokenizer.decode(served, skip_special_tokens=False) == render(conversation)
    assert trained == served


def test_batches_depend_on_seed_and_index_alone() -> None:
    encoder = Encoder(tokenizers.Tokenizer.from_file(str(demo_model_path() / "tokenizer.json")))
    ids, mask = make_batch(0, 5, encoder, 2048, 1024, 0.5)
    again, _ = make_batch(0, 5, encoder, 2048, 1024, 0.5)
    other, _ = make_batch(0, 6, encoder, 2048, 1024, 0.5)
    assert ids.shape == mask.shape == (2, 1024)
    assert (ids == again).all()
    assert (ids != other).any()
    assert 0.05 < mask.mean() < 0.6
    assert not mask[ids == encoder.pad].any()


def test_control_tokens_are_single_ids_after_the_bpe() -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    ids = [tokenizer.token_to_id(text) for text, _ in ADDED]
    assert ids == list(range(4032, 4032 + 61))
    for text, special in ADDED:
        assert tokenizer.encode(f"a{text}b", add_special_tokens=False).ids[1] == tokenizer.token_to_id(text)
        assert (tokenizer.decode([tokenizer.token_to_id(text)], skip_special_tokens=True) == "") == special
