"""The page pool: which pages are free, in use (and by how many), or unused but worth keeping.

A page is one sparse block of ``block_size`` tokens: K, V and index-K of all layers, one unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmx.scheduler.prefix_cache import PrefixCache


class BlockManager:
    """Reference-counted pages ``0 .. num_blocks - 1``.

    A page without users goes back to the free list, or, if the prefix cache knows its content, into a
    reusable list that is evicted oldest first once the free list is empty.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cache = PrefixCache()
        self._num_users = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._reusable: dict[int, None] = {}

    @property
    def num_available(self) -> int:
        """Pages that ``allocate`` could give out now."""
        return len(self._free) + len(self._reusable)

    @property
    def num_reusable(self) -> int:
        """Pages without users whose content is kept for a later hit."""
        return len(self._reusable)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_unused(self, pages: Iterable[int]) -> int:
        """How many of the pages have no user, so that sharing them takes from ``num_available``."""
        return sum(1 for page in pages if self._num_users[page] == 0)

    def allocate(self, count: int) -> list[int]:
        """Take ``count <= num_available`` pages; their old content is forgotten."""
        if count > self.num_available:
            raise ValueError(f"count must be at most num_available={self.num_available}, got {count}")
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page = next(iter(self._reusable))
                del self._reusable[page]
                self.cache.forget(page)
            self._num_users[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Add a user to pages that the prefix cache found."""
        for page in pages:
            self._reusable.pop(page, None)
            self._num_users[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Take one user from each page of a block table.

        Why backwards: the tail of a prefix is of use only with its head, so it must be evicted first.
        """
        for page in reversed(pages):
            self._num_users[page] -= 1
            if self._num_users[page] == 0:
                if page in self.cache:
                    self._reusable[page] = None
                else:
                    self._free.append(page)

    def forget(self, pages: Iterable[int]) -> None:
        """Make sure that nobody will hit these pages again, in use or not."""
        for page in pages:
            self.cache.forget(page)
            if page in self._reusable:
                del self._reusable[page]
                self._free.append(page)

    def reset_cache(self) -> None:
        """Forget every page without users."""
        self.forget(list(self._reusable))
