"""Small arithmetic with visible reasoning: digit by digit with carries and borrows, and word problems."""

from __future__ import annotations

import operator
import random

from mmx.demo.train.data.dialogue import Reply, Turn
from mmx.demo.train.data.words import NAMES, OBJECTS, held_out

_SYMBOL_ASKS = [
    "{a} {op} {b}", "What is {a} {op} {b}?", "{a}{op}{b}", "{a} {op} {b} = ?", "Calculate {a} {op} {b}.",
    "{a} {op} {b} =", "what's {a} {op} {b}", "Compute {a} {op} {b}", "How much is {a} {op} {b}?", "{a}{op}{b}=?",
    "What does {a} {op} {b} equal?", "please calculate {a} {op} {b}", "{a} {op} {b}?", "Hi, what is {a} {op} {b}?",
]  # fmt: skip
_ZH_ASKS = ["{a} {op} {b} 等于多少？", "计算 {a} {op} {b}", "{a}{op}{b}等于几？", "请计算{a}{op}{b}。",
            "{a} {op} {b} 是多少？"]  # fmt: skip
_WORD_ASKS = {
    "+": ["What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "{a} plus {b}"],
    "-": ["What is {a} minus {b}?", "Subtract {b} from {a}.", "{a} minus {b}"],
    "*": ["What is {a} times {b}?", "Multiply {a} by {b}.", "{a} times {b}", "What is {a} x {b}?"],
    "/": ["What is {a} divided by {b}?", "Divide {a} by {b}.", "{a} divided by {b}"],
}
_ZH_WORDS = {
    "+": "{a}加{b}等于多少？",
    "-": "{a}减{b}等于多少？",
    "*": "{a}乘以{b}等于多少？",
    "/": "{a}除以{b}等于多少？",
}

_COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def _digits(n: int, width: int) -> list[int]:
    return [n // 10**i % 10 for i in range(width)]


def add_steps(a: int, b: int) -> str:
    """Spell out a written addition, last digits first."""
    width, carry, steps = max(len(str(a)), len(str(b))), 0, []
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        total = x + y + carry
        steps.append(f"{x} + {y}{' + 1' if carry else ''} = {total}, write {total % 10}")
        carry = total // 10
        if carry:
            steps[-1] += ", carry 1"
    if carry:
        steps.append("write 1")
    return f"{a} + {b}: {'; '.join(steps)}. So {a + b}."


def subtract_steps(a: int, b: int) -> str:
    """Spell out a written subtraction of the smaller from the larger number."""
    if a < b:
        return f"{a} is less than {b}. {subtract_steps(b, a)} Negative: {a - b}."
    width, borrow, steps = len(str(a)), 0, []
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        low = x - y - borrow
        digit = low % 10
        lent = "1" if low < 0 else ""
        steps.append(f"{lent}{x} - {y}{' - 1' if borrow else ''} = {digit}{', borrow 1' if lent else ''}")
        borrow = int(low < 0)
    return f"{a} - {b}: {'; '.join(steps)}. So {a - b}."


def multiply_steps(a: int, b: int) -> str:
    """Split the larger factor into tens and ones, and two long factors into one line per digit."""
    a, b = max(a, b), min(a, b)
    tens, ones = a // 10 * 10, a % 10
    if b > 12 and b % 10:
        low, high = a * (b % 10), a * (b // 10 * 10)
        parts = f"{multiply_steps(a, b % 10)} {multiply_steps(a, b // 10)} Times 10 is {high}."
        return f"{a} * {b}: {parts} {add_steps(high, low)}"
    if a <= 12 or not ones:
        return f"{a} * {b} = {a * b}."
    return (
        f"{a} * {b}: {tens} * {b} = {tens * b}; {ones} * {b} = {ones * b}; {tens * b} + {ones * b} = {a * b}."
    )


def steps(a: int, op: str, b: int) -> str:
    """Return the reasoning for ``a op b``."""
    if op == "/":
        return f"{b} * {a // b} = {a}. So {a // b}."
    return {"+": add_steps, "-": subtract_steps, "*": multiply_steps}[op](a, b)


def value(a: int, op: str, b: int) -> int:
    return _COMPUTE[op](a, b)


def sum_turn(a: int, op: str, b: int, ask: str) -> Turn:
    """Ask ``a op b`` with the given phrasing."""
    return Turn(
        ask.format(a=a, b=b, op=op), Reply(f"{a} {op} {b} = {value(a, op, b)}.", steps(a, op, b), thinks=True)
    )


def operands(rng: random.Random) -> tuple[int, str, int]:
    """Draw an operation, leaving out what evaluation holds out."""
    while True:
        op = rng.choices("+-*/", [10, 5, 3, 1])[0]
        if op == "+" or op == "-":
            high = rng.choices([10, 100, 1000, 10000], [4, 10, 4, 2])[0]
            a, b = rng.randrange(high), rng.randrange(high if rng.random() < 0.8 else 100)
            if op == "-" and a < b and rng.random() < 0.7:
                a, b = b, a
        elif op == "*":
            wide, narrow = rng.choices([(100, 10), (13, 13), (100, 13), (100, 100)], [3, 3, 1, 3])[0]
            a, b = rng.randrange(wide), rng.randrange(narrow)
            if rng.random() < 0.5:
                a, b = b, a
        else:
            b = rng.randint(1, 12)
            a = b * rng.randint(0, 12)
        if not ((op in "+-" or min(a, b) > 12) and held_out(a, op, b)):
            return a, op, b


def _story(rng: random.Random) -> Turn:
    name, things = rng.choice(NAMES), rng.choice(OBJECTS)
    a, op, b = rng.randint(2, 60), rng.choice("+-"), rng.randint(2, 40)
    if op == "-" and a < b:
        a, b = b, a
    if held_out(a, op, b):
        return _story(rng)
    verb = (
        rng.choice(["buys", "gets", "finds"]) if op == "+" else rng.choice(["loses", "sells", "gives away"])
    )
    more = " more" if op == "+" else ""
    ask = f"{name} has {a} {things} and {verb} {b}{more}. How many {things} does {name} have?"
    result = value(a, op, b)
    return Turn(ask, Reply(f"{name} has {result} {things}.", steps(a, op, b), thinks=True))


def _compare(rng: random.Random) -> Turn:
    a, b = rng.sample(range(rng.choice([100, 1000])), 2)
    if rng.random() < 0.5:
        ask = rng.choice(["Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?"])
        return Turn(
            ask.format(a=a, b=b), Reply(f"{max(a, b)} is larger.", f"{max(a, b)} > {min(a, b)}.", thinks=True)
        )
    ask = rng.choice(["Which is smaller, {a} or {b}?", "Which number is less: {a} or {b}?"])
    return Turn(
        ask.format(a=a, b=b), Reply(f"{min(a, b)} is smaller.", f"{min(a, b)} < {max(a, b)}.", thinks=True)
    )


def arithmetic(rng: random.Random) -> Turn:
    """One arithmetic question."""
    kind = rng.random()
    if kind < 0.08:
        return _story(rng)
    if kind < 0.14:
        return _compare(rng)
    a, op, b = operands(rng)
    asks = _SYMBOL_ASKS if kind < 0.72 else _WORD_ASKS[op] if kind < 0.86 else [*_ZH_ASKS, _ZH_WORDS[op]]
    ask = rng.choice(asks)
    if op == "*" and rng.random() < 0.3:
        shown = rng.choice("×x")
        return Turn(ask.format(a=a, b=b, op=shown), sum_turn(a, op, b, ask).reply)
    return sum_turn(a, op, b, ask)
