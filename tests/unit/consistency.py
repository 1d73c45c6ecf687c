"""What must hold between requests, queues and pages after every event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmx.scheduler.block_manager import BlockManager
from mmx.scheduler.prefix_cache import PrefixCache
from mmx.scheduler.replicas import Replicas
from mmx.scheduler.scheduler import Scheduler


def check_scheduler(scheduler: Scheduler | Replicas) -> None:
    for group in scheduler.groups if isinstance(scheduler, Replicas) else [scheduler]:
        _check_group(group)


def _check_group(scheduler: Scheduler) -> None:
    waiting, running, requests = scheduler._waiting, scheduler._running, scheduler._requests
    check_pages(scheduler.blocks, (req.block_ids for req in running))
    for queue in (waiting, running):
        assert queue == sorted(queue, key=lambda req: req.order), "queue is out of order"
    queued = sorted(req.arrival for req in (*waiting, *running))
    assert queued == sorted(req.arrival for req in requests.values()), "a request is lost"
    assert all(not req.block_ids and req.num_planned == 0 for req in waiting), "waiting with pages"
    assert scheduler._num_waiting_tokens == sum(len(req.tokens) for req in waiting)
    for req in running:
        assert len(req.block_ids) >= scheduler.blocks.num_blocks_for(req.num_planned), (
            "positions without page"
        )
    flying = [req for _, reqs in scheduler._in_flight for req in reqs]
    for req in requests.values():
        assert req.num_in_flight == sum(other is req for other in flying), "steps in flight miscounted"
        assert 0 <= req.num_pending <= req.num_in_flight, "pending tokens miscounted"


def check_pages(blocks: BlockManager, block_tables: Iterable[Sequence[int]]) -> None:
    """Every page is exactly one of free, reusable, or used as often as the block tables say."""
    expected = [0] * blocks.num_blocks
    for table in block_tables:
        assert len(set(table)) == len(table), f"block table holds a page twice: {list(table)}"
        for page in table:
            expected[page] += 1
    assert blocks._num_users == expected, "pages: user counts differ from the block tables"
    unused = [page for page, users in enumerate(expected) if users == 0]
    assert sorted([*blocks._free, *blocks._reusable]) == unused, "pages: a page leaked or is listed twice"
    assert all(page in blocks.cache for page in blocks._reusable), "pages: reusable page without a key"
    assert not any(page in blocks.cache for page in blocks._free), "pages: free page with a key"
    check_cache(blocks.cache)


def check_cache(cache: PrefixCache) -> None:
    assert len(cache._page_of) == len(cache._key_of), "prefix cache: keys and pages differ in number"
    for key, page in cache._page_of.items():
        assert cache._key_of.get(page) == key, f"prefix cache: page {page} has another key"
