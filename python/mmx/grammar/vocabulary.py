"""The tokens of a model as the matcher sees them."""

from __future__ import annotations

from collections.abc import Iterable

import llguidance
import numpy as np

from mmx.tokenizer import Tokenizer

Row = np.ndarray[tuple[int], np.dtype[np.int32]]
"""A token mask: bit ``i % 32`` of word ``i // 32`` allows token ``i``."""


_MARKS = frozenset(b"\"'\\/<>[]{}:,")


class _Source:
    """What ``llguidance.TokenizerWrapper`` asks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_ids[0]
        self.bos_token_id = None
        unused = set(tokenizer.unused_ids)
        # Control tokens never stand for their text: a grammar names them by their id.
        self.special_token_ids = sorted({*tokenizer.control_ids.values(), *unused})
        self.tokens = [
            b"<unused %d>" % i if i in unused else tokenizer.token_bytes(i)
            for i in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_plain(
            text if isinstance(text, str) else text.decode("utf-8", "replace")
        )


class Vocabulary:
    """``num_words`` is the length of a mask; ``text_row`` allows all tokens that are text, ``plain_row``
    those without punctuation that an answer is built of."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = _Source(tokenizer)
        self.size = tokenizer.vocab_size
        self.num_words = (self.size + 31) // 32
        self.eos_ids = tokenizer.eos_token_ids
        self.matching = llguidance.LLTokenizer(llguidance.TokenizerWrapper(source), n_vocab=self.size)
        self._tokens = source.tokens
        special = frozenset(source.special_token_ids)
        self.text_row = self.row(i for i in range(self.size) if i not in special)
        self.id_of = {text: i for i, text in enumerate(self._tokens) if i not in special}
        # What goes on with a text or a number and can not begin or end anything.
        self.plain_row = self.row(i for text, i in self.id_of.items() if not _MARKS.intersection(text))
        self.special = special
        self.closing_tags = [(i, text) for text, i in self.id_of.items() if text.startswith(b"</")]
        self.slashes = [(i, text) for text, i in self.id_of.items() if text.startswith(b"/")]
        self.tag_ends = [(i, text) for text, i in self.id_of.items() if b">" in text]

    def bytes_of(self, token_id: int) -> bytes:
        """The text of a token in UTF-8, maybe a part of a character."""
        return self._tokens[token_id]

    def row(self, ids: Iterable[int]) -> Row:
        """A mask that allows just these tokens."""
        row = np.zeros(self.num_words, np.int32)
        allow(row, ids)
        return row


def allows(row: Row, token_id: int) -> bool:
    """Whether the mask allows a token."""
    return bool(row[token_id >> 5] >> (token_id & 31) & 1)


def allow(row: Row, ids: Iterable[int]) -> None:
    """Allow these tokens too."""
    words = row.view(np.uint32)
    for i in ids:
        words[i >> 5] |= np.uint32(1 << (i & 31))


def forbid(row: Row, ids: Iterable[int]) -> None:
    """Allow these tokens no longer."""
    words = row.view(np.uint32)
    for i in ids:
        words[i >> 5] &= np.uint32(~(1 << (i & 31)) & 0xFFFFFFFF)


def allow_only(row: Row, ids: Iterable[int]) -> None:
    """Keep those of ``ids`` that are allowed already."""
    kept = [i for i in ids if allows(row, i)]
    row[:] = 0
    allow(row, kept)
