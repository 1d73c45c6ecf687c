"""Drives an engine in this process and takes what it says."""

from __future__ import annotations

from collections.abc import Iterator

from mmx.engine.channel import LocalChannel
from mmx.engine.engine import Engine
from mmx.protocol import Failed, StepOutput, TokenOut
from unit.consistency import check_scheduler


def collect(engine: Engine, channel: LocalChannel) -> Iterator[Failed | TokenOut]:
    """Step until idle."""
    while channel.inbox or engine.scheduler.has_work:
        engine.step()
        check_scheduler(engine.scheduler)
        for message in channel.outbox:
            yield from message.outputs if isinstance(message, StepOutput) else [message]  # type: ignore[misc]
        channel.outbox.clear()


def tokens_of(engine: Engine, channel: LocalChannel) -> dict[str, list[int]]:
    """``collect`` by request; none may fail."""
    tokens: dict[str, list[int]] = {}
    for item in collect(engine, channel):
        assert isinstance(item, TokenOut), item
        tokens.setdefault(item.request_id, []).extend(item.token_ids)
    return tokens
