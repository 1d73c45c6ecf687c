"""The lock under which engines plan the memory of one GPU."""

from __future__ import annotations

import os
from pathlib import Path

from mmx.backend.accelerator import _lock, _open_shared


def test_one_engine_plans_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "mmx-gpu.lock"
    first, second = _open_shared(path), _open_shared(path)
    assert _lock(first)
    assert not _lock(second)
    os.close(first)
    assert _lock(second)
    os.close(second)


def test_a_file_that_may_only_be_read_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mmx-gpu.lock"
    path.touch(0o444)
    fd = _open_shared(path)
    assert _lock(fd)
    os.close(fd)
