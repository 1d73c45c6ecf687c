"""Measure the demo model on held-out items: ``python -m mmx.demo.evaluate [--device cuda]``.

An item is a rendered prompt and the one answer that the data's grammar allows. It counts when the model's most
likely token equals the answer's at every position up to the end of turn: exactly the items whose greedy
continuation is the answer, found in one forward pass each. Needle items repeat with the selector replaced by
full attention and by random blocks.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from mmx.demo import model_path
from mmx.demo.train.data import arithmetic, chat, facts, needles, phrasing, strings, tools
from mmx.demo.train.data.countries import COUNTRIES
from mmx.demo.train.data.dialogue import ADAPTIVE, DISABLED, ENABLED, Conversation, Encoder, Turn
from mmx.demo.train.data.words import held_out
from mmx.demo.train.export import load_shape, load_weights
from mmx.demo.train.model import DENSE, RANDOM, TRAINED, Model

NEEDLE_LENGTHS = (2048, 4096, 8192, 16384)


class Item(NamedTuple):
    """Token ids of a conversation and, for each, whether it is part of the scored answer."""

    ids: list[int]
    scored: list[bool]


def make_item(encoder: Encoder, turn: Turn, mode: str, tools: list[dict[str, object]] | None = None,
              closing: bool = False) -> Item:  # fmt: skip
    """Encode one turn; only the last reply is scored, or the calling one unless ``closing``."""
    conversation = Conversation(mode, tools=tools or ())
    head = encoder.header(conversation)
    asked = turn if closing or turn.closing is None else Turn(turn.user, turn.reply)
    ids, written = encoder.turn(asked, mode)
    if closing:
        called = len(encoder.turn(Turn(turn.user, turn.reply), mode)[0])
        written = [w and i >= called for i, w in enumerate(written)]
    return Item(head + ids, [False] * len(head) + written)


def short_tasks(encoder: Encoder, rng: random.Random, count: int) -> Iterator[tuple[str, list[Item]]]:
    """Yield the name and the items of every short task."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if held_out(a, "+", b)]
    asks = ["What is {a} {op} {b}?", "{a} {op} {b}", "{a}+{b}", "计算 {a} {op} {b}"]
    for mode in (ADAPTIVE, DISABLED):
        drawn = [(*rng.choice(pairs), rng.choice(asks)) for _ in range(count)]
        items = [make_item(encoder, arithmetic.sum_turn(a, "+", b, ask), mode) for a, b, ask in drawn]
        yield f"two-digit sums, thinking {mode}", items
    minus = [(a, b) for a in range(10, 100) for b in range(10, a + 1) if held_out(a, "-", b)]
    drawn = [(*rng.choice(minus), "What is {a} {op} {b}?") for _ in range(count)]
    items = [make_item(encoder, arithmetic.sum_turn(a, "-", b, ask), ADAPTIVE) for a, b, ask in drawn]
    yield "two-digit differences, thinking adaptive", items
    times = [(a, b) for a in range(13, 100) for b in range(13, 100) if held_out(a, "*", b)]
    drawn = [(*rng.choice(times), "What is {a} {op} {b}?") for _ in range(count)]
    items = [make_item(encoder, arithmetic.sum_turn(a, "*", b, ask), ADAPTIVE) for a, b, ask in drawn]
    yield "two-digit products, thinking adaptive", items
    for name, chinese, phrasings in (
        ("capitals, new phrasing", False, facts.CAPITAL_ASKS_HELD_OUT),
        ("capitals, new phrasing, Chinese", True, facts.ZH_CAPITAL_ASKS_HELD_OUT),
    ):
        yield name, [
            make_item(encoder, facts.capital_turn(country, ask, chinese), rng.choice([ADAPTIVE, ENABLED, DISABLED]))
            for country in COUNTRIES
            for ask in phrasings
        ]
    yield "facts", [make_item(encoder, facts.fact(rng), ADAPTIVE) for _ in range(count)]
    yield "string tasks", [make_item(encoder, strings.string_task(rng), ADAPTIVE) for _ in range(count)]
    yield "small talk", [make_item(encoder, chat.small_talk(rng), ADAPTIVE) for _ in range(count)]


def tool_tasks(encoder: Encoder, rng: random.Random, count: int) -> Iterator[tuple[str, list[Item]]]:
    """Yield weather calls in held-out phrasings and random calls of other tools, and the turns after them."""
    modes = (ADAPTIVE, ENABLED, DISABLED)
    for name, chinese, asks in (
        ("weather", False, phrasing.WEATHER_HELD_OUT),
        ("weather, Chinese", True, phrasing.ZH_WEATHER_HELD_OUT),
    ):
        calls, answers = [], []
        for _ in range(count):
            tool, mode = tools.weather_tool(rng), rng.choice(modes)
            city = rng.choice(tools.ALL_ZH_CITIES if chinese else tools.ALL_CITIES)
            turn = tools.weather_turn(rng, tool, [city], rng.choice(asks), chinese)
            calls.append(make_item(encoder, turn, mode, [tool]))
            answers.append(make_item(encoder, turn, mode, [tool], closing=True))
        yield f"tool calls, {name}", calls
        yield f"answers from the result, {name}", answers
    calls, answers = [], []
    for _ in range(count):
        declared, asking = tools.toolbox(rng, 3)
        turn, mode = rng.choice(asking)(rng), rng.choice(modes)
        calls.append(make_item(encoder, turn, mode, declared))
        answers.append(make_item(encoder, turn, mode, declared, closing=True))
    yield "tool calls, one of up to 3 tools", calls
    yield "answers from the result, one of up to 3 tools", answers


def needle_items(encoder: Encoder, rng: random.Random, count: int, length: int) -> list[Item]:
    """Hide one key sentence at a uniform depth of a text that makes the prompt ``length`` tokens or just less."""
    items = []
    for _ in range(count):
        needle = needles.distinct_needles(rng, 1)[0]

        def length_of(text: str) -> int:
            return len(encoder.tokenizer.encode(text, add_special_tokens=False).ids)

        text = needles.haystack(rng, [needle], length - 300, length_of)
        items.append(make_item(encoder, needles.needle_turns([needle], text, False)[0], ADAPTIVE))
    return items


@torch.no_grad()
def accuracy(model: Model, items: list[Item], pad: int, selector: str, num_tokens: int) -> float:
    """Return the share of items answered exactly; ``num_tokens`` bounds the padded tokens of one pass."""
    device = model.embed.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    right, todo = 0, sorted(items, key=lambda item: len(item.ids))
    while todo:
        length = -(-len(todo[-1].ids) // 64) * 64
        batch = [todo.pop() for _ in range(min(len(todo), max(1, num_tokens // length)))]
        tokens = torch.tensor([item.ids + [pad] * (length - len(item.ids)) for item in batch], device=device)
        scored = torch.tensor([item.scored + [False] * (length - len(item.ids)) for item in batch], device=device)
        hidden, _, _ = model(tokens, selector, dtype)
        row, column = scored.nonzero(as_tuple=True)
        best = model.logits(hidden[row * length + column - 1]).argmax(-1)
        wrong = torch.zeros(len(batch), device=device).index_add(0, row, (best != tokens[row, column]).float())
        right += int((wrong == 0).sum())
    return right / len(items)


def report(model: Model, tokenizer: Tokenizer, count: int, num_needles: int, lengths: tuple[int, ...],
           num_tokens: int, say: Callable[[str], None]) -> None:  # fmt: skip
    """Print the whole table line by line."""
    encoder, rng = Encoder(tokenizer), random.Random("evaluation")
    say("| task | items | exact |\n|---|---|---|")
    for tasks in (short_tasks, tool_tasks):
        for name, items in tasks(encoder, rng, count):
            say(f"| {name} | {len(items)} | {accuracy(model, items, encoder.pad, TRAINED, num_tokens):.1%} |")
    say("\n| needle at | items | trained selector | full attention | random blocks |\n|---|---|---|---|---|")
    for length in lengths:
        items = needle_items(encoder, rng, num_needles, length)
        cells = [accuracy(model, items, encoder.pad, s, num_tokens) for s in (TRAINED, DENSE, RANDOM)]
        say(f"| {length} tokens | {len(items)} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mmx.demo.evaluate", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", type=Path, default=model_path(), help="checkpoint folder")
    parser.add_argument("--items", type=int, default=200, help="items of each short task")
    parser.add_argument("--needles", type=int, default=100, help="needle items of each length")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(NEEDLE_LENGTHS), help="needle lengths")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Model(load_shape(args.model)).to(args.device).eval()
    load_weights(model, args.model / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    num_tokens = 65536 if args.device == "cuda" else 4096
    report(model, tokenizer, args.items, args.needles, tuple(args.lengths), num_tokens, lambda s: print(s, flush=True))


if __name__ == "__main__":
    main()
