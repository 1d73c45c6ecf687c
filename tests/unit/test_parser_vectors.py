"""The shared parser vectors, each in every cut. ``MMX_PARSER_VECTORS`` names another file to run instead."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmx.parsers import Machine, ParsedMessage, collect, make_parser
from unit.parser_helpers import Streamed, stream, text_chunks, tokens_of

FILE = json.loads(
    Path(os.environ.get("MMX_PARSER_VECTORS") or Path(__file__).with_name("parser_vectors.json")).read_text(
        "utf-8"
    )
)
VECTORS = FILE["vectors"]
Vector = dict[str, Any]


def maker(vector: Vector) -> Callable[[], Machine]:
    def make() -> Machine:
        return make_parser(
            vector.get("reasoning_parser") or "none",
            vector.get("tool_parser") or "none",
            prompt=vector["prompt_tail"],
            thinking_mode=vector["thinking_mode"],
            tools=vector["tools"],
            tool_choice=vector["tool_choice"],
            marker_ids=FILE["marker_ids"][vector["family"]],
        )

    return make


def non_stream(vector: Vector, parser: Machine) -> ParsedMessage:
    if not vector.get("ids_only"):
        return collect(parser.feed(vector["output"], finished=True))
    events = [
        e
        for text, ids in tokens_of(vector, FILE["marker_ids"][vector["family"]])
        for e in parser.feed(text, ids)
    ]
    return collect(events + parser.feed("", [], finished=True))


def trimmed(text: str | None, how: str) -> str | None:
    return ((text or "").strip() if how == "strip" else text) or None


def trimmed_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: trimmed_values(member) for key, member in value.items()}
    if isinstance(value, list):
        return [trimmed_values(item) for item in value]
    return value.strip() if isinstance(value, str) else value


def differences(
    vector: Vector, message: ParsedMessage, reasoning_tokens: int | None, expect: Vector
) -> list[str]:
    compare = vector["compare"]
    found: dict[str, tuple[Any, Any]] = {
        name: (trimmed(getattr(message, name), compare[name]), trimmed(expect[name], compare[name]))
        for name in ("reasoning", "content")
    }
    clean = trimmed_values if compare["arguments"] == "json-strip" else lambda value: value
    calls = [(call.name, clean(json.loads(call.arguments))) for call in message.tool_calls]
    found["tool_calls"] = (calls, [(call["name"], clean(call["arguments"])) for call in expect["tool_calls"]])
    found["finish_reason"] = (message.finish_reason(vector["engine_finish"]), expect["finish_reason"])
    if reasoning_tokens is not None and "reasoning_tokens" in expect:
        found["reasoning_tokens"] = (reasoning_tokens, expect["reasoning_tokens"])
    return [
        f"{name}: got {got!r}, expected {wanted!r}" for name, (got, wanted) in found.items() if got != wanted
    ]


def assert_expected(vector: Vector, message: ParsedMessage, reasoning_tokens: int | None = None) -> None:
    accepted = [vector["expect"], *({**vector["expect"], **change} for change in vector.get("alt", []))]
    found = [differences(vector, message, reasoning_tokens, expect) for expect in accepted]
    assert [] in found, f"{vector['id']}: {found}"


def assert_stream(vector: Vector, streamed: Streamed, message: ParsedMessage) -> None:
    """(b)-(f): what a client puts together equals the answer in one piece."""
    assert (streamed.reasoning or None, streamed.content or None) == (message.reasoning, message.content)
    assert streamed.names == [call.name for call in message.tool_calls]
    rules = vector.get("stream", {})
    for arguments, call in zip(streamed.arguments, message.tool_calls, strict=True):
        if call.complete or rules.get("arguments") != "prefix":
            assert json.loads(arguments) == json.loads(call.arguments)
    for name in ("content", "reasoning"):
        for text in rules.get(f"forbid_in_{name}", []):
            assert text not in getattr(streamed, name), f"{text} in {name}"


def assert_milestones(vector: Vector, make: Callable[[], Machine]) -> None:
    for milestone in vector.get("stream", {}).get("milestones", []):
        parser, seen = make(), Streamed()
        for char in vector["output"][: milestone["after_chars"]]:
            seen.add(parser.feed(char))
        assert seen.names[: len(milestone.get("tool_names", []))] == milestone.get("tool_names", [])
        for index, part in milestone.get("arguments_contains", {}).items():
            assert part in seen.arguments[int(index)]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_vector(vector: Vector) -> None:
    make = maker(vector)
    output = vector["output"]
    message = non_stream(vector, make())
    assert_expected(vector, message)

    parser = make()
    streamed = stream(parser, [*tokens_of(vector, FILE["marker_ids"][vector["family"]]), ("", [])])
    assert_stream(vector, streamed, message)
    assert_expected(vector, message, parser.reasoning_tokens)
    if vector.get("ids_only"):
        return
    cuts = [[output], list(output), *([output[:i], output[i:]] for i in range(1, len(output)))]
    for pieces in [*cuts, *vector.get("chunkings", [])]:
        assert "".join(pieces) == output
        assert_stream(vector, stream(make(), text_chunks(pieces)), message)
    assert_milestones(vector, make)


def test_random_splits() -> None:
    """1,000 random cuts over the set, half of them with token ids."""
    rng = random.Random(7)
    expected: dict[str, ParsedMessage] = {}
    for turn in range(1000):
        vector = VECTORS[turn % len(VECTORS)]
        if vector["id"] not in expected:
            expected[vector["id"]] = non_stream(vector, maker(vector)())
        parser = maker(vector)()
        if turn % 2 or vector.get("ids_only"):
            tokens = tokens_of(vector, FILE["marker_ids"][vector["family"]])
            markers = set(FILE["marker_ids"][vector["family"]].values())
            chunks: list[tuple[str, list[int] | None]] = []
            for text, ids in tokens:
                joins = chunks and rng.random() < 0.6 and not markers & {*ids, *(chunks[-1][1] or [])}
                if joins:
                    before, before_ids = chunks.pop()
                    text, ids = before + text, [*(before_ids or []), *ids]
                chunks.append((text, ids))
            chunks.append(("", []))
        else:
            output = vector["output"]
            borders = sorted(
                {0, len(output), *(rng.randrange(len(output) + 1) for _ in range(rng.randrange(12)))}
            )
            chunks = text_chunks([output[a:b] for a, b in itertools.pairwise(borders)])
        assert_stream(vector, stream(parser, chunks), expected[vector["id"]])
        if turn % 2:
            assert_expected(vector, expected[vector["id"]], parser.reasoning_tokens)
