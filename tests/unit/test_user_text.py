"""`UserText` behaves as the string that the caller wrote, and keeps the origin of every character."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.tokenizer.user_text import MarkerAlphabet, UserText, concat, shown, unwrap, wrap

ALPHABET = MarkerAlphabet(["</think>", "]<]start of image[>["])
TEXT = st.lists(st.sampled_from(["</think>", "<", "a", "b ", "\n", " ", "é", "ab", "x"]), max_size=8).map(
    "".join
)
ARG = st.sampled_from(["</think>", "<", "a", " ", "b ", "x", "\n", "ab"])

OPERATIONS: dict[str, Callable[[str, str], Any]] = {
    "split": lambda s, a: s.split(a),
    "split once": lambda s, a: s.split(a, 1),
    "rsplit once": lambda s, a: s.rsplit(a, 1),
    "split at blanks": lambda s, a: s.split(),
    "split once at blanks": lambda s, a: s.split(None, 1),
    "lines": lambda s, a: s.splitlines(),
    "partition": lambda s, a: list(s.partition(a)),
    "rpartition": lambda s, a: list(s.rpartition(a)),
    "strip": lambda s, a: s.strip(a),
    "strip blanks": lambda s, a: s.strip(),
    "lstrip": lambda s, a: s.lstrip(a),
    "rstrip": lambda s, a: s.rstrip(a),
    "removeprefix": lambda s, a: s.removeprefix(a),
    "removesuffix": lambda s, a: s.removesuffix(a),
    "replace": lambda s, a: s.replace(a, "é"),
    "replace once": lambda s, a: s.replace(a, "é", 1),
    "in": lambda s, a: a in s,
    "startswith": lambda s, a: s.startswith(a),
    "endswith": lambda s, a: s.endswith((a, "x")),
    "find": lambda s, a: s.find(a),
    "count": lambda s, a: s.count(a),
    "slice": lambda s, a: s[1:-1],
    "characters": lambda s, a: list(s),
    "upper": lambda s, a: s.upper(),
    "equal": lambda s, a: [s == a, s != a, s < a],
    "length": lambda s, a: len(s),
    "isspace": lambda s, a: s.isspace(),
}


def assert_hidden(value: Any) -> None:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            assert isinstance(text, UserText)
            assert "".join((text,)) == ALPHABET.hide(shown(text))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_follow_the_visible_text(name: str) -> None:
    operation = OPERATIONS[name]

    @settings(max_examples=100, deadline=None)
    @given(TEXT, ARG, st.booleans())
    def check(text: str, argument: str, wrapped_argument: bool) -> None:
        given_argument = UserText.from_user(argument, ALPHABET) if wrapped_argument else argument
        result = operation(UserText.from_user(text, ALPHABET), given_argument)
        assert unwrap(result) == operation(text, argument)
        assert_hidden(result)

    check()


@given(TEXT, TEXT, TEXT)
def test_joining_keeps_origins(before: str, text: str, after: str) -> None:
    user = UserText.from_user(text, ALPHABET)
    joined = before + user + after
    assert joined == before + text + after
    assert "".join((joined,)) == before + ALPHABET.hide(text) + after
    assert concat((before, user, after)) == joined
    assert user.join([before, after]) == before + text + after
    assert ALPHABET.show("".join((joined,))) == before + text + after


def test_containers_keep_their_keys_usable() -> None:
    value = wrap({"a<b": ["</think>", 1, None, True], "n": {"k": "v"}}, ALPHABET)
    assert value["a<b"][0] == "</think>"
    assert "n" in value
    assert value["n"].get("k") == "v"
    assert unwrap(value) == {"a<b": ["</think>", 1, None, True], "n": {"k": "v"}}


def test_alphabet_avoids_used_characters() -> None:
    assert ALPHABET.avoiding({0x41}) is ALPHABET
    other = ALPHABET.avoiding({ALPHABET.private.start})
    assert other is not None
    assert ALPHABET.private.start not in other.private
    assert ALPHABET.avoiding(set(range(0x100000, 0x110000))) is None
