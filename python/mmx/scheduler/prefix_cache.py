"""Which page holds the keys and values of which token prefix.

The key of a page is a hash of everything before and in it: ``h_0 = H(salt)``,
``h_(i+1) = H(h_i || token ids of page i)``. Equal keys therefore mean equal prefixes (128 bits of
blake2b), and callers with different salts never share.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

DIGEST_BYTES = 16


def root_hash(cache_salt: str) -> bytes:
    """Key of the empty prefix."""
    return blake2b(cache_salt.encode(), digest_size=DIGEST_BYTES).digest()


def page_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """Key of the page with these tokens after the prefix ``parent``."""
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()


class PrefixCache:
    """One-to-one map between keys and the pages that hold them. Knows nothing of reference counts."""

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._key_of

    def get(self, key: bytes) -> int | None:
        return self._page_of.get(key)

    def insert(self, key: bytes, page: int) -> None:
        """Remember a fully computed page. A second page with the same content is not remembered."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def forget(self, page: int) -> None:
        """Drop the page if it is known."""
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]
