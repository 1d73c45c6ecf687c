"""Which reader of the model's output a chat request gets."""

from __future__ import annotations

from collections.abc import Callable

from mmx.server.choice import OutputReader
from mmx.server.model_front import ModelFront
from mmx.server.prompts import Prompt
from mmx.server.schemas import ChatRequest
from mmx.server.state import ServerState


def reader_factory(
    state: ServerState, front: ModelFront, chat: ChatRequest, prompt: Prompt, mode: str, warnings: list[str]
) -> Callable[[], OutputReader | None]:
    return lambda: None
