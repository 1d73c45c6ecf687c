"""The page pool."""

from __future__ import annotations

import pytest

from mmx.scheduler.block_manager import BlockManager
from unit.consistency import check_pages


def keyed(blocks: BlockManager, *names: str) -> list[int]:
    """Allocate one page per name and put it under that key."""
    pages = blocks.allocate(len(names))
    for page, name in zip(pages, names, strict=True):
        blocks.cache.insert(name.encode(), page)
    return pages


def test_pages_come_back() -> None:
    blocks = BlockManager(4, 2)
    pages = blocks.allocate(3)
    assert sorted(pages) == [0, 1, 2]
    assert blocks.num_available == 1
    check_pages(blocks, [pages])
    blocks.release(pages)
    check_pages(blocks, [])
    assert blocks.num_available == 4
    assert blocks.num_reusable == 0


def test_no_more_pages_than_there_are() -> None:
    blocks = BlockManager(2, 2)
    with pytest.raises(ValueError, match="count must be at most num_available=2, got 3"):
        blocks.allocate(3)


def test_a_shared_page_is_free_only_after_its_last_user() -> None:
    blocks = BlockManager(2, 2)
    pages = keyed(blocks, "a")
    blocks.share(pages)
    blocks.release(pages)
    assert blocks.num_available == 1
    blocks.release(pages)
    assert (blocks.num_available, blocks.num_reusable) == (2, 1)


def test_known_pages_are_kept_until_the_free_ones_are_gone_and_tails_go_first() -> None:
    blocks = BlockManager(4, 2)
    old = keyed(blocks, "old0", "old1")
    new = keyed(blocks, "new0")
    blocks.release(old)
    blocks.release(new)
    check_pages(blocks, [])
    taken = blocks.allocate(1)
    assert len(blocks.cache) == 3, "a free page was there"
    for gone in (b"old1", b"old0", b"new0"):
        assert blocks.cache.get(gone) is not None
        taken += blocks.allocate(1)
        assert blocks.cache.get(gone) is None
    check_pages(blocks, [taken])


def test_sharing_revives_a_page() -> None:
    blocks = BlockManager(2, 2)
    pages = keyed(blocks, "a")
    blocks.release(pages)
    assert blocks.num_unused(pages) == 1
    blocks.share(pages)
    assert (blocks.num_unused(pages), blocks.num_available) == (0, 1)
    other = blocks.allocate(1)
    assert blocks.cache.get(b"a") == pages[0]
    check_pages(blocks, [pages, other])


def test_forget_and_reset() -> None:
    blocks = BlockManager(3, 2)
    used, idle = keyed(blocks, "used"), keyed(blocks, "idle")
    blocks.release(idle)
    blocks.reset_cache()
    assert (blocks.cache.get(b"used"), blocks.cache.get(b"idle")) == (used[0], None)
    blocks.forget(used)
    check_pages(blocks, [used])
    blocks.release(used)
    assert (blocks.num_available, blocks.num_reusable) == (3, 0)


def test_the_checker_sees_a_leak() -> None:
    blocks = BlockManager(3, 2)
    blocks.allocate(1)
    with pytest.raises(AssertionError, match="user counts differ"):
        check_pages(blocks, [])
