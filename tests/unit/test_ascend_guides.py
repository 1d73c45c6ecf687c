"""The commands of docs/ascend-guides.md, read as they stand on the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mmx.server.settings import ServerConfig, load_config
from unit.test_guides import sizes_of

PAGE = Path(__file__).resolve().parents[2] / "docs/ascend-guides.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def load(block: str) -> ServerConfig:
    """The settings of a block: variables that it exports, then its one command."""
    environ: dict[str, str] = {}
    *exports, command = block.replace("\\\n", " ").strip().split("\n")
    for line in exports:
        word, *settings = shlex.split(line)
        assert word == "export"
        environ |= dict(setting.split("=", 1) for setting in settings)
    program, serve, *argv = shlex.split(command)
    assert (program, serve) == ("mmx", "serve")
    return load_config(argv, environ)


@pytest.mark.parametrize(
    ("number", "sizes"),
    [(0, (4, 4, 1, True)), (1, (8, 1, 2, None)), (2, (8, 2, 1, True)), (3, (8, 2, 1, True))],
    ids=["A3", "A3-long", "A2-first", "A2-second"],
)
def test_every_command_is_served(number: int, sizes: tuple[int, int, int, bool | None]) -> None:
    assert len(BLOCKS) == 4
    config = load(BLOCKS[number])
    assert sizes_of(config.parallel) == sizes
    assert config.parallel.world_size == 16
    assert config.checkpoint.quantization == "ascend"
    assert not config.engine.enforce_eager


def test_features_of_the_single_node() -> None:
    config = load(BLOCKS[0])
    assert config.parallel.sequence_parallel_norm and config.launch.bind_cpus
    for name in ("--enable-balance-scheduling ", "--enable-fused-mc2 ", "left to the libraries"):
        assert sum(note.startswith(name) for note in config.notes) == 1


def test_nodes_differ_in_their_place_only() -> None:
    first, second = load(BLOCKS[2]), load(BLOCKS[3])
    assert (first.launch.data_parallel_start_rank, first.launch.headless) == (0, False)
    assert (second.launch.data_parallel_start_rank, second.launch.headless) == (1, True)
    assert first.engine == second.engine and first.parallel == second.parallel
    for config in (first, second):
        assert config.launch.data_parallel_address == "10.0.0.1"
        assert config.launch.data_parallel_rpc_port == 13389
