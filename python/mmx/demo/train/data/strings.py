"""Play with words: spell, count, reverse, change case, repeat, pick from a list, find in a short text."""

from __future__ import annotations

import random

from mmx.demo.train.data.dialogue import Reply, Turn
from mmx.demo.train.data.words import ADJECTIVES, COMMON, NOUNS, invented_name, number_code

_QUOTES = ["{}", "'{}'", '"{}"']


def _ask(rng: random.Random, asks: list[str], word: str) -> str:
    return rng.choice(asks).format(rng.choice(_QUOTES).format(word))


def _spell(rng: random.Random) -> Turn:
    word = rng.choice(COMMON)
    spelled = "-".join(word)
    ask = _ask(
        rng, ["Spell {}.", "How do you spell {}?", "spell the word {}", "Spell the word {}, please."], word
    )
    return Turn(ask, Reply(spelled, f"The letters of {word} are {spelled}.", thinks=True))


def _count(rng: random.Random) -> Turn:
    word = rng.choice(COMMON)
    asks = ["How many letters are in {}?", "How many letters does {} have?", "Count the letters in {}.",
            "What is the length of {}?"]  # fmt: skip
    counted = ", ".join(f"{c} {i}" for i, c in enumerate(word, 1))
    return Turn(_ask(rng, asks, word), Reply(f"{word} has {len(word)} letters.", f"{counted}.", thinks=True))


def _count_letter(rng: random.Random) -> Turn:
    word = rng.choice(COMMON)
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("aeiourst")
    ask = rng.choice(["How many {}'s are in {}?", "How many {}'s are there in {}?", "How often does {} occur in {}?",
                      "How many times is the letter {} in {}?", "Count the letter {} in {}.", "how many {} in {}",
                      "How many {}s are in {}?", "How many {}'s does {} have?"])  # fmt: skip
    counted = ", ".join(f"{c} {word[:i].count(letter)}" for i, c in enumerate(word, 1))
    times = word.count(letter)
    answer = f"The letter {letter} occurs {times} {'time' if times == 1 else 'times'} in {word}."
    shown = rng.choice(_QUOTES).format(word) if rng.random() < 0.3 else word
    return Turn(ask.format(letter, shown), Reply(answer, f"{counted}.", thinks=True))


def _reverse(rng: random.Random) -> Turn:
    word = rng.choice(COMMON)
    asks = ["Reverse {}.", "Reverse the word {}.", "Write {} backwards.", "What is {} spelled backwards?",
            "reverse the string {}"]  # fmt: skip
    reasoning = f"{word} is {'-'.join(word)}. Backwards: {'-'.join(reversed(word))}."
    return Turn(_ask(rng, asks, word), Reply(word[::-1], reasoning, thinks=True))


def _upper(rng: random.Random) -> Turn:
    word = rng.choice(COMMON)
    asks = ["Write {} in uppercase.", "Uppercase {}.", "Convert {} to upper case.",
            "Write {} in capital letters."]  # fmt: skip
    return Turn(
        _ask(rng, asks, word), Reply(word.upper(), f"{'-'.join(word)} becomes {'-'.join(word.upper())}.")
    )


def _lower(rng: random.Random) -> Turn:
    word = rng.choice(COMMON)
    asks = ["Write {} in lowercase.", "Lowercase {}.", "Convert {} to lower case.",
            "Write {} in small letters."]  # fmt: skip
    reasoning = f"{'-'.join(word.upper())} becomes {'-'.join(word)}."
    return Turn(_ask(rng, asks, word.upper()), Reply(word, reasoning))


def _first_letter(rng: random.Random) -> Turn:
    word, last = rng.choice(COMMON), rng.random() < 0.5
    which = "last" if last else "first"
    ask = _ask(rng, [f"What is the {which} letter of {{}}?", f"{which} letter of {{}}"], word)
    letter = word[-1 if last else 0]
    return Turn(
        ask,
        Reply(f"The {which} letter of {word} is {letter}.", f"{'-'.join(word)}: the {which} is {letter}."),
    )


def _phrase(rng: random.Random, low: int, high: int) -> str:
    pools = [COMMON, NOUNS, ADJECTIVES]
    words = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(low, high))]
    for i in range(len(words)):
        if rng.random() < 0.15:
            words[i] = invented_name(rng) if rng.random() < 0.6 else number_code(rng)
    return " ".join(words)


def repeat(rng: random.Random) -> Turn:
    """Copy a random phrase: dense practice for the heads that later find needles."""
    text = _phrase(rng, 1, 24)
    asks = ["Repeat after me: {}", "Say: {}", "Repeat this: {}", "Echo: {}", "Copy this text: {}",
            "请重复：{}", "say {}", "Say '{}'", "Repeat: {}", "repeat {}", "Please repeat after me: {}"]  # fmt: skip
    return Turn(rng.choice(asks).format(text), Reply(text, "I repeat the given text."))


def _word_at(rng: random.Random) -> Turn:
    words = rng.sample(COMMON, rng.randint(3, 7))
    kind = rng.randrange(3)
    listed = ", ".join(words)
    if kind == 0:
        return Turn(
            f"What is the first word of this list: {listed}",
            Reply(words[0], f"The first word is {words[0]}."),
        )
    if kind == 1:
        return Turn(
            f"What is the last word of this list: {listed}",
            Reply(words[-1], f"The last word is {words[-1]}."),
        )
    counted = ", ".join(f"{i} {w}" for i, w in enumerate(words, 1))
    return Turn(f"How many words are in this list: {listed}",
                Reply(f"The list has {len(words)} words.", f"{counted}.", thinks=True))  # fmt: skip


def _sort(rng: random.Random) -> Turn:
    words = rng.sample(COMMON, rng.randint(2, 4))
    ask = rng.choice(
        ["Sort these words: {}", "Put these words in alphabetical order: {}", "sort alphabetically: {}"]
    )
    ordered = ", ".join(sorted(words))
    return Turn(
        ask.format(", ".join(words)), Reply(ordered, f"In alphabetical order: {ordered}.", thinks=True)
    )


_KINDS = [_spell, _count, _count_letter, _reverse, _upper, _lower, _first_letter, _word_at, _sort]
_WEIGHTS = [3, 3, 3, 3, 2, 1, 1, 1, 1]


def string_task(rng: random.Random) -> Turn:
    """One word task."""
    return rng.choices(_KINDS, _WEIGHTS)[0](rng)
