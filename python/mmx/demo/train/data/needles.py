"""Long texts of filler sentences in which key sentences hide, and questions that ask for them."""

from __future__ import annotations

import random
from collections.abc import Callable

from mmx.demo.train.data.countries import CITIES, COUNTRIES
from mmx.demo.train.data.dialogue import Reply, Turn
from mmx.demo.train.data.words import ADJECTIVES, COMMON, NAMES, NOUNS, invented_name, number_code

_KINDS = ["secret number", "access code", "pass number", "key", "secret code", "ticket number", "magic number",
          "phone number", "locker number", "password", "secret word", "code"]  # fmt: skip
_ASKS = ["What is {}?", "What is {}?", "Tell me {}.", "what is {}", "Find {}.", "Do you remember {}?",
         "According to the text, what is {}?", "Please tell me {}."]  # fmt: skip
_PEOPLE = ["farmer", "teacher", "doctor", "painter", "baker", "captain", "sailor", "writer", "nurse", "clerk", "cook",
           "driver", "singer", "guard", "child", "king", "merchant", "student", "traveller", "gardener"]  # fmt: skip
_VERBS = ["walked", "looked", "returned", "went", "ran", "came", "travelled", "moved", "hurried", "wandered"]
_HOW = ["slowly", "quickly", "quietly", "happily", "carefully", "alone", "again", "together", "early", "late"]
_WHEN = ["in the morning", "at night", "in winter", "after lunch", "on Monday", "before dawn", "every day", "in spring",
         "last year", "in the evening", "on Friday", "at noon"]  # fmt: skip
_LINKS = ["and", "but", "while", "because", "so", "although"]


class Needle:
    """A key sentence: what it is about, its random value, the sentence and the question.

    Without a noun the subject names no owner ("The password is ..."): at most one of those fits a text.
    """

    def __init__(self, rng: random.Random, noun: str | None) -> None:
        self.subject = f"the {rng.choice(_KINDS)}"
        if noun is not None:
            owner = f"the {rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.7 else noun.capitalize()
            self.subject += rng.choices([f" of {owner}", f" for {owner}"], [4, 1])[0]
        self.value = needle_value(rng)
        self.sentence = f"{self.subject[0].upper()}{self.subject[1:]} is {self.value}."
        self.question = rng.choice(_ASKS).format(self.subject)
        self.reply = Reply(self.sentence, f"The text says: {self.sentence}", thinks=False)


def needle_value(rng: random.Random) -> str:
    """Draw a value that no other text has: digits, two words or letters and digits."""
    kind = rng.random()
    if kind < 0.65:
        return number_code(rng, 4, 7)
    if kind < 0.85:
        return f"{rng.choice(ADJECTIVES)} {invented_name(rng).lower() if rng.random() < 0.4 else rng.choice(NOUNS)}"
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}-{number_code(rng, 2, 4)}"


def filler_sentence(rng: random.Random) -> str:
    """One sentence about nothing; none has the form of a key sentence."""
    kind = rng.randrange(6)
    a, b, x, y = (rng.choice(pool) for pool in (_PEOPLE, _PEOPLE, ADJECTIVES, NOUNS))
    if kind == 0:
        return f"The {x} {a} {rng.choice(_VERBS)} {rng.choice(_HOW)} to the {y} {rng.choice(_WHEN)}."
    if kind == 1:
        return f"{rng.choice(NAMES)} saw a {x} {y} near the {rng.choice(NOUNS)}, {rng.choice(_LINKS)} the {b} left."
    if kind == 2:
        place = rng.choice(CITIES) if rng.random() < 0.5 else rng.choice(COUNTRIES).name
        return f"In {rng.randint(1200, 2020)} a {a} from {place} bought {rng.randint(2, 99)} {rng.choice(COMMON)}s."
    if kind == 3:
        return f"There was a {x} {y} behind the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(_WHEN)}."
    if kind == 4:
        return f"The {a} told the {b} about the {rng.choice(COMMON)}, {rng.choice(_LINKS)} nobody listened."
    return f"{rng.choice(_WHEN).capitalize()} the {rng.choice(COMMON)} was {x}, {rng.choice(_LINKS)} it was {rng.choice(ADJECTIVES)}."


def distinct_needles(rng: random.Random, count: int) -> list[Needle]:
    """Make needles about different nouns, so that each question has one answer."""
    nouns = rng.sample(NOUNS, min(count, len(NOUNS)))
    while len(nouns) < count:
        nouns.append(invented_name(rng))
    made = [Needle(rng, noun) for noun in nouns]
    if rng.random() < 0.3:
        made[-1] = Needle(rng, None)
    return made


def haystack(rng: random.Random, needles: list[Needle], budget: int, length_of: Callable[[str], int]) -> str:
    """Build a text of about ``budget`` tokens with the needles at uniformly random depths.

    ``length_of`` counts tokens of a text. The depth of a needle is uniform over the filler's sentences.
    """
    used = sum(length_of(" " + needle.sentence) for needle in needles)
    sentences: list[str] = []
    while used < budget:
        more = [filler_sentence(rng) for _ in range(max(1, min(64, (budget - used) // 20)))]
        used += length_of(" " + " ".join(more))
        sentences += more
    slots = sorted((rng.randint(0, len(sentences)), i) for i in range(len(needles)))
    order = list(range(len(needles)))
    rng.shuffle(order)
    for slot, i in reversed(slots):
        sentences.insert(slot, needles[order[i]].sentence)
    return " ".join(sentences)


def needle_turns(needles: list[Needle], text: str, question_first: bool) -> list[Turn]:
    """The first turn carries the text and the first question; every other needle is one short turn."""
    first = needles[0]
    user = f"{first.question}\n\n{text}" if question_first else f"{text}\n\n{first.question}"
    return [Turn(user, first.reply), *(Turn(n.question, n.reply) for n in needles[1:])]
