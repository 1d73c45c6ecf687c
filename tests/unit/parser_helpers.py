"""Runs an output through a parser in many cuts and compares what comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmx.parsers import CallArgs, CallEnd, CallStart, Content, Event, Machine, Reasoning, collect

Chunk = tuple[str, list[int] | None]


@dataclass
class Streamed:
    """An answer as a streaming client puts it together: from the deltas only."""

    reasoning: str = ""
    content: str = ""
    names: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    final_arguments: list[str] = field(default_factory=list)
    complete: list[bool] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Reasoning(text):
                    self.reasoning += text
                    assert text, "a delta must not be empty"
                case Content(text):
                    self.content += text
                    assert text, "a delta must not be empty"
                case CallStart(index, call_id, name):
                    assert index == len(self.names) == len(self.final_arguments), "calls come one by one"
                    assert call_id
                    self.names.append(name)
                    self.arguments.append("")
                case CallArgs(index, delta):
                    assert index == len(self.names) - 1
                    assert len(self.final_arguments) == index, "no delta after the end of a call"
                    self.arguments[index] += delta
                case CallEnd(index, arguments, complete):
                    assert index == len(self.final_arguments)
                    self.final_arguments.append(arguments)
                    self.complete.append(complete)
                    if complete:
                        assert json.loads(self.arguments[index]) == json.loads(arguments)
                        assert len(set(top_level_keys(arguments))) == len(top_level_keys(arguments))
                    else:
                        assert_prefix_of_more(self.arguments[index], json.loads(arguments))

    @property
    def result(self) -> tuple[Any, ...]:
        return self.reasoning, self.content, self.names, self.final_arguments, self.complete


def stream(parser: Machine, chunks: Sequence[Chunk]) -> Streamed:
    streamed = Streamed()
    for i, (text, ids) in enumerate(chunks):
        streamed.add(parser.feed(text, ids, finished=i == len(chunks) - 1))
    assert len(streamed.final_arguments) == len(streamed.names), "every call ends"
    return streamed


def top_level_keys(arguments: str) -> list[str]:
    return [key for key, _ in json.loads(arguments, object_pairs_hook=list)]


def assert_prefix_of_more(prefix: str, finished: dict[str, Any]) -> None:
    """``prefix`` is JSON that was cut off, and holds at least the ``finished`` members."""
    assert finished.keys() <= json.loads(close_json(prefix)).keys()


def close_json(prefix: str) -> str:
    stack: list[str] = []
    in_string = escaped = False
    for char in prefix:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            stack.append("}" if char == "{" else "]")
        elif char in "}]":
            assert stack.pop() == char
    return prefix + '"' * in_string + "".join(reversed(stack))


def text_chunks(pieces: Iterable[str]) -> list[Chunk]:
    return [(piece, None) for piece in pieces]


def tokens_of(vector: dict[str, Any], marker_ids: dict[str, int]) -> list[tuple[str, list[int]]]:
    """(text, [id]) per token: as the vector says, else markers as one token and the rest in small pieces."""
    tokens = vector.get("tokens")
    if tokens is None:
        markers = "|".join(map(re.escape, sorted(marker_ids, key=len, reverse=True)))
        tokens = re.findall(rf"{markers}| ?\w+|\s+|[^\w\s]", vector["output"])
        special = {i for i, token in enumerate(tokens) if token in marker_ids}
    else:
        special = set(vector["special_tokens"])
    assert "".join(tokens) == vector["output"]
    return [(token, [marker_ids[token] if i in special else 100 + i % 50]) for i, token in enumerate(tokens)]


def assert_same_in_every_cut(make: Callable[[], Machine], output: str) -> Streamed:
    """Whole, by characters and in every two-way cut, without ids; returns the result."""
    whole = stream(make(), text_chunks([output]))
    cuts = [[output[:i], output[i:]] for i in range(1, len(output))]
    for pieces in [list(output) or [""], *cuts]:
        assert stream(make(), text_chunks(pieces)).result == whole.result, pieces
    message = collect(make().feed(output, finished=True))
    assert (message.reasoning or "", message.content or "") == (whole.reasoning, whole.content)
    return whole
