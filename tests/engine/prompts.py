"""Prompts of random tokens for the tiny models."""

from __future__ import annotations

from random import Random

VOCAB = 256
# Around page borders (8 tokens on M3, 128 on M2) and, on M3, beyond top-k blocks x block size = 32.
PROMPT_LENGTHS = {"m2": [1, 127, 128, 129, 200, 270], "m3": [1, 7, 8, 9, 31, 33, 64, 75]}


def random_prompt(length: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(VOCAB) for _ in range(length)]
