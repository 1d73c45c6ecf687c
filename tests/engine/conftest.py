"""The tiny models that invariants are tested on, and prompts for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.prompts import PROMPT_LENGTHS, random_prompt
from models.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["m2", "m3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / request.param
    return write_tiny_checkpoint(target, request.param, torch.float32, seed=5)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    return [random_prompt(length, seed=length) for length in PROMPT_LENGTHS[folder.name]]
