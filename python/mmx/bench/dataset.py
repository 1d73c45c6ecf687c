"""Prompts: what each request sends and how much it asks for; `random` and `prefix_repetition`."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import msgspec

from mmx.bench.options import Options
from mmx.tokenizer import Tokenizer

EXACT_TEXT_ROUNDS = 10


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request. ``prompt``: text or ids, or None when ``messages`` or a whole ``body`` is sent.

    ``input_len``: tokens of the prompt (a chat template not counted), None if only the server knows.
    """

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    body: dict[str, Any] | None = None
    input_len: int | None = None
    output_len: int | None = None


class PromptMaker:
    """Prompts of an exact number of tokens, from the tokens that are text."""

    def __init__(self, tokenizer: Tokenizer, rng: Random, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._as_ids = as_ids
        controls = set(tokenizer.control_ids.values())
        self.allowed = [
            i for i in range(tokenizer.vocab_size) if i not in controls and _is_text(tokenizer.token_bytes(i))
        ]
        if not self.allowed:
            raise ValueError("tokenizer: it has no token that is text")
        self.num_inexact = 0

    def draw(self, num_tokens: int) -> list[int]:
        """Ids, each at random."""
        return self._rng.choices(self.allowed, k=num_tokens)

    def run(self, num_tokens: int) -> list[int]:
        """Neighbouring ids from a random offset, around the end."""
        offset = self._rng.randrange(len(self.allowed))
        return [self.allowed[(offset + i) % len(self.allowed)] for i in range(num_tokens)]

    def sample(self, ids: list[int], output_len: int) -> Sample:
        """A request with these ids, or with text that has as many tokens."""
        if self._as_ids:
            return Sample(prompt=ids, input_len=len(ids), output_len=output_len)
        text, count = self._text(ids)
        self.num_inexact += count != len(ids)
        return Sample(prompt=text, input_len=count, output_len=output_len)

    def _text(self, ids: list[int]) -> tuple[str, int]:
        """Why rounds: neighbouring tokens of the text may merge when it is encoded again."""
        target = len(ids)
        for _ in range(EXACT_TEXT_ROUNDS):
            text = self._tokenizer.decode(ids)
            again = self._tokenizer.encode_plain(text)
            if len(again) == target:
                return text, target
            ids = again[:target] + self.draw(max(0, target - len(again)))
        text = self._tokenizer.decode(ids)
        return text, len(self._tokenizer.encode_plain(text))


def random_samples(options: Options, maker: PromptMaker, rng: Random) -> list[Sample]:
    """``random``: a shared prefix, then input of varying length."""
    prefix = maker.draw(options.random_prefix_len)
    low_in, high_in = length_range(options, options.random_input_len)
    low_out, high_out = length_range(options, options.random_output_len)
    lens = [
        (rng.randint(low_in, high_in), rng.randint(low_out, high_out)) for _ in range(options.num_prompts)
    ]
    make = maker.draw if options.random_ids else maker.run
    return [maker.sample(prefix + make(input_len), output_len) for input_len, output_len in lens]


def length_range(options: Options, length: int) -> tuple[int, int]:
    """Smallest and largest length, at least 1."""
    ratio = options.random_range_ratio
    if options.range_ratio_style == "trt":
        return max(1, math.floor(length * ratio)), length
    # Why the rounding: 50 * (1 + 0.1) is a little above 55.
    return max(1, math.floor(round(length * (1 - ratio), 6))), math.ceil(round(length * (1 + ratio), 6))


def prefix_repetition_samples(options: Options, maker: PromptMaker, rng: Random) -> list[Sample]:
    """``prefix_repetition``: the same number of requests for each prefix, shuffled."""
    samples = []
    for _ in range(options.prefix_repetition_num_prefixes):
        prefix = maker.draw(options.prefix_repetition_prefix_len)
        for _ in range(options.num_prompts // options.prefix_repetition_num_prefixes):
            ids = prefix + maker.draw(options.prefix_repetition_suffix_len)
            samples.append(maker.sample(ids, options.prefix_repetition_output_len))
    rng.shuffle(samples)
    return samples


def _is_text(data: bytes) -> bool:
    """Whether a token's bytes are whole characters: pieces of one would be encoded differently again."""
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False
