"""Names of open elements: a closing tag of M3 repeats the name of its element, and in a map the model chooses
the names, so no grammar can say it."""

from __future__ import annotations

from mmx.grammar.vocabulary import Row, Vocabulary, allow_only, forbid


class OpenTags:
    """Follows a call block; ``restrict`` forbids the tokens that would misspell a closing tag or repeat the
    name of an element beside it (twice the same name makes a list)."""

    def __init__(self, vocabulary: Vocabulary, separator: int) -> None:
        self._vocabulary = vocabulary
        self._separator = separator
        self._open: list[tuple[bytes, set[bytes]]] = [(b"", set())]  # name, names inside
        self._tag: bytes | None = None  # what has been written since a separator

    def copy(self) -> OpenTags:
        """The same state, to go on from it."""
        other = OpenTags(self._vocabulary, self._separator)
        other._open, other._tag = [(name, set(used)) for name, used in self._open], self._tag
        return other

    @property
    def inside(self) -> bool:
        """Whether a tag has begun and not ended."""
        return self._tag is not None

    def advance(self, token_id: int) -> None:
        """Take a token that has been sampled."""
        if token_id == self._separator:
            self._tag = b""
            return
        if self._tag is None:
            return
        if token_id in self._vocabulary.special:
            self._tag = None
            return
        self._tag += self._vocabulary.bytes_of(token_id)
        if b">" in self._tag:
            self._take(self._tag[: self._tag.index(b">")])
            self._tag = None

    def _take(self, tag: bytes) -> None:
        if tag.startswith(b"</"):
            if len(self._open) > 1:
                self._open.pop()
            return
        name = b"invoke" if tag.startswith(b"<invoke name=") and len(self._open) == 1 else tag[1:]
        if name != b"item":
            self._open[-1][1].add(name)
        self._open.append((name, set()))

    def restrict(self, row: Row) -> None:
        """Forbid in the mask ``row`` the next tokens that the class tells of."""
        tag, (name, used) = self._tag, self._open[-1]
        if tag is None:
            return
        vocabulary = self._vocabulary
        closing = b"</" + name + b">"
        if tag.startswith(b"</"):
            rest = closing[len(tag) :]
            ends = (rest[: length + 1] for length in range(len(rest)))
            allow_only(row, [vocabulary.id_of[end] for end in ends if end in vocabulary.id_of])
            return
        if tag in (b"", b"<"):
            candidates = vocabulary.slashes if tag else vocabulary.closing_tags
            forbid(row, [i for i, text in candidates if not closing.startswith(tag + text)])
        if used and len(self._open) > 1:
            forbid(row, [i for i, text in vocabulary.tag_ends if self._opens_used(tag + text, used)])

    @staticmethod
    def _opens_used(text: bytes, used: set[bytes]) -> bool:
        return not text.startswith(b"</") and text[1 : text.index(b">")] in used
