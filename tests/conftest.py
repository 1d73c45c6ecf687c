"""Fixtures shared by all tests: devices and reproducible random numbers."""

from __future__ import annotations

import os
import zlib

# Why before torch: OpenMP reads it once. Waiting threads that spin take the processor from the processes that
# the tests start, and two cores have none to spare.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked slow as well")
    parser.addoption(
        "--soak-seconds", type=float, help="how long tests/parallel/test_soak.py loads its ranks"
    )
    parser.addoption(
        "--soak-load", type=float, default=1.0, help="share of that time in which requests start"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: runs with --full")
    skip_cuda = pytest.mark.skip(reason="no NVIDIA GPU here")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--full"):
            item.add_marker(skip_slow)
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_cuda)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed made from the test's own id: stable under reordering and -k."""
    return zlib.crc32(request.node.nodeid.replace("cuda", "cpu").encode())


@pytest.fixture
def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
