"""The thread in which a rank tells rank 0 what it sampled."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from mmx.config import EngineConfig, Place
from mmx.engine.control import Sampled
from mmx.engine.rank import Follower


class EndError(Exception):
    pass


def test_it_works_on_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a context is set up on another one, which takes 0.1 s and memory there."""
    seen: list[Any] = []
    monkeypatch.setattr("mmx.engine.rank.use_local_device", lambda *where: seen.append(where))

    def end(error: Exception) -> NoReturn:
        seen.append(str(error))
        raise EndError

    def lost() -> NoReturn:
        raise RuntimeError("lost")

    follower = object.__new__(Follower)
    follower.config = EngineConfig(model="m", device="cuda", place=Place(local_rank=3))
    follower._line = SimpleNamespace(send=seen.append)  # type: ignore[assignment]
    follower._flights = queue.SimpleQueue()
    follower._end = end  # type: ignore[method-assign]
    for flight in (SimpleNamespace(result=list), SimpleNamespace(result=lost)):
        follower._flights.put((7, flight))
    with pytest.raises(EndError):
        follower._report()
    assert seen == [("cuda", 3), Sampled(step=7, tokens=[]), "lost"]
