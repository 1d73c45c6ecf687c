"""Keys of pages."""

from __future__ import annotations

from mmx.scheduler.prefix_cache import DIGEST_BYTES, PrefixCache, page_hash, root_hash
from unit.consistency import check_cache


def test_a_key_depends_on_salt_on_everything_before_and_on_every_token() -> None:
    root = root_hash("")
    first = page_hash(root, [1, 2, 3, 200_000])
    keys = [
        first,
        page_hash(root_hash("x"), [1, 2, 3, 200_000]),
        page_hash(root, [1, 2, 3, 200_001]),
        page_hash(root, [2, 1, 3, 200_000]),
        page_hash(first, [1, 2, 3, 200_000]),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == DIGEST_BYTES for key in keys)
    assert page_hash(root_hash(""), [1, 2, 3, 200_000]) == first


def test_the_first_page_with_a_content_stays() -> None:
    cache = PrefixCache()
    cache.insert(b"k", 3)
    cache.insert(b"k", 4)
    assert cache.get(b"k") == 3
    assert 4 not in cache
    assert len(cache) == 1
    cache.forget(4)
    cache.forget(3)
    assert cache.get(b"k") is None
    assert len(cache) == 0
    check_cache(cache)
