"""The responses that clients can come back to: in memory, bounded in number and age."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any

from mmx.server.errors import ApiError, clip, invalid

MAX_AGE_SECONDS = 3600.0
OPEN = ("queued", "in_progress")


class Stored:
    """``response`` as clients see it, ``messages`` the conversation before it without instructions,
    ``sequences`` the ids of its work in the engine."""

    def __init__(
        self, response: dict[str, Any], messages: list[dict[str, Any]], sequences: list[str]
    ) -> None:
        self.response = response
        self.messages = messages
        self.sequences = sequences
        self.expires = time.monotonic() + MAX_AGE_SECONDS
        self.closed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is still being generated."""
        return self.response["status"] in OPEN

    def close(self, response: dict[str, Any]) -> None:
        """Set the final form."""
        self.response = response
        self.sequences = []
        self.closed.set()


class ResponseStore:
    """At most ``size`` responses, the oldest go first; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    @property
    def enabled(self) -> bool:
        return self._size > 0

    def put(self, stored: Stored) -> None:
        self._stored[stored.response["id"]] = stored
        if len(self._stored) > self._size:
            self._stored.popitem(last=False)

    def get(self, response_id: str, param: str) -> Stored:
        """404 with ``param`` if it is unknown or too old."""
        stored = self._stored.get(response_id)
        if stored is not None and stored.expires <= time.monotonic():
            del self._stored[response_id]
            stored = None
        if stored is None:
            raise ApiError("not_found", f"there is no response {clip(response_id)!r}", param)
        return stored

    def item(self, item_id: str, param: str) -> dict[str, Any]:
        """The output item of any stored response with this id."""
        for stored in self._stored.values():
            for item in stored.response["output"]:
                if item["id"] == item_id:
                    found: dict[str, Any] = item
                    return found
        raise invalid(param, f"refers to an unknown item {clip(item_id)!r}", "not_found")

    def delete(self, response_id: str) -> Stored:
        """Forget one; 404 if it is unknown."""
        stored = self.get(response_id, "response_id")
        del self._stored[response_id]
        return stored
