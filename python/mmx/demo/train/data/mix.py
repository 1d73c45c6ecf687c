"""The training mix: rows of token ids of a fixed length, each one conversation, from a seed and an index."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mmx.demo.train.data.arithmetic import arithmetic
from mmx.demo.train.data.chat import small_talk
from mmx.demo.train.data.dialogue import (
    ADAPTIVE,
    DEFAULT_DEVELOPER,
    DISABLED,
    ENABLED,
    Conversation,
    Encoder,
    Turn,
    render,
)
from mmx.demo.train.data.facts import capital, fact
from mmx.demo.train.data.needles import distinct_needles, filler_sentence, haystack, needle_turns
from mmx.demo.train.data.phrasing import disturbed
from mmx.demo.train.data.strings import repeat, string_task
from mmx.demo.train.data.tools import CALCULATORS, Ask, missing_tool, toolbox

_DEVELOPERS = ["You are a helpful assistant.", "You are mmx.", "Answer briefly.", "You are a friendly assistant.",
               "Be concise.", "你是一个有用的助手。", "You are a helpful AI assistant. Answer the user's questions.",
               "You can use tools."]  # fmt: skip
_TASKS = [arithmetic, capital, fact, string_task, small_talk, repeat]
_TASK_WEIGHTS = [30, 16, 20, 14, 12, 8]


def ordinary_turn(rng: random.Random, tools: bool = False, calculator: bool = False) -> Turn:
    """One task without a tool; with a calculator at hand sums are the tool's."""
    if not tools and rng.random() < 0.03:
        return missing_tool(rng)
    task = rng.choices(_TASKS, _TASK_WEIGHTS)[0]
    while calculator and task is arithmetic:
        task = rng.choices(_TASKS, _TASK_WEIGHTS)[0]
    turn = task(rng)
    return turn if task is small_talk or task is repeat else replace(turn, user=disturbed(rng, turn.user))


def _random_rules(rng: random.Random) -> str:
    return " ".join(filler_sentence(rng) for _ in range(rng.randint(1, 4)))


def _opening(rng: random.Random) -> Conversation:
    kind = rng.random()
    developer = (
        rng.choice(_DEVELOPERS) if kind < 0.2 else _random_rules(rng) if kind < 0.27 else DEFAULT_DEVELOPER
    )
    return Conversation(rng.choices([ADAPTIVE, ENABLED, DISABLED], [4, 3, 3])[0], developer)


def _needle_start(rng: random.Random, encoder: Encoder, room: int, length: int) -> list[Turn]:
    """A text that fills most of the room, asked about by as many turns as the rest holds."""
    count = rng.randint(1, 4) if length <= 512 else rng.randint(4, 24 if length <= 2048 else 40)
    needles = distinct_needles(rng, count)
    budget = room - 64 * count - 40
    if rng.random() < 0.3:
        budget = int(budget * rng.uniform(0.3, 1.0))

    def length_of(text: str) -> int:
        return len(encoder.tokenizer.encode(text, add_special_tokens=False).ids)

    return needle_turns(needles, haystack(rng, needles, budget, length_of), rng.random() < 0.1)


def make_row(
    rng: random.Random, encoder: Encoder, length: int, needle_share: float
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """Return ids ``[length]`` padded at the end and the mask of tokens that the model writes."""
    conversation = _opening(rng)
    pending: list[Turn] = []
    asks: list[Ask] = []
    kind = rng.random()
    if kind >= needle_share and kind < needle_share + (1 - needle_share) * 0.45:
        conversation.tools, asks = toolbox(rng, 1 if length <= 512 else 4)
    ids = list(encoder.header(conversation))
    if len(ids) > length * 3 // 4:
        conversation.tools, asks = (), []
        ids = list(encoder.header(conversation))
    mask = [False] * len(ids)
    if kind < needle_share:
        pending = _needle_start(rng, encoder, length - len(ids), length)
    calculator = any(tool["name"] in CALCULATORS for tool in conversation.tools)
    misses = 0
    while misses < 3:
        if pending:
            turn = pending.pop(0)
        elif asks and rng.random() < 0.7:
            turn = rng.choice(asks)(rng)
        else:
            turn = ordinary_turn(rng, bool(asks), calculator)
        turn_ids, turn_mask = encoder.turn(turn, conversation.mode)
        if len(ids) + len(turn_ids) > length:
            misses += 1
            continue
        ids += turn_ids
        mask += turn_mask
    pad = length - len(ids)
    return np.array(ids + [encoder.pad] * pad, np.int16), np.array(mask + [False] * pad, np.bool_)


def make_batch(
    seed: int, index: int, encoder: Encoder, num_tokens: int, length: int, needle_share: float
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """Return the ``index``-th batch of the run, ``[num_tokens / length, length]``, the same for every caller."""
    rng = random.Random(f"{seed}/{index}")
    rows = [make_row(rng, encoder, length, needle_share) for _ in range(max(1, num_tokens // length))]
    return np.stack([ids for ids, _ in rows]), np.stack([mask for _, mask in rows])


def corpus(seed: int, conversations: int) -> Iterator[str]:
    """Yield rendered conversations for the tokenizer's training."""
    rng = random.Random(f"{seed}/corpus")
    for i in range(conversations):
        conversation = _opening(rng)
        if i % 10 == 0:
            needles = distinct_needles(rng, 10)
            conversation.turns = needle_turns(
                needles, haystack(rng, needles, 200, lambda t: len(t.split())), False
            )
        elif i % 10 < 5:
            conversation.tools, asks = toolbox(rng, 3)
            conversation.turns = [rng.choice(asks)(rng) for _ in range(4)]
        else:
            conversation.turns = [ordinary_turn(rng) for _ in range(8)]
        yield render(conversation)
