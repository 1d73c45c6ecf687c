"""Requests made from our own OpenAPI document by schemathesis: whatever it sends, no answer is a 5xx."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmx.server.openapi import openapi_document
from server.process import server

CONFIG = "request-timeout = 30\n"


def test_parameters_of_paths_are_declared() -> None:
    for path, operations in openapi_document()["paths"].items():
        names = re.findall(r"\{([^}]*)\}", path)
        for operation in operations.values():
            assert [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"] == names, path


@pytest.mark.parametrize(
    ("phases", "examples", "least"),
    [
        pytest.param("coverage", 1, 500, id="coverage"),
        pytest.param("coverage,fuzzing", 120, 5000, id="fuzzing", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_no_case_is_answered_with_5xx(phases: str, examples: int, least: int, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    # Why so short a context: a request may ask for as many tokens as fit.
    with server("null?step_seconds=0", "--max-model-len", "300") as process:
        process.ready()
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
        command += [f"{process.url}/openapi.json", "--checks", "not_a_server_error", "--phases", phases]
        command += ["--max-examples", str(examples), "--seed", "1", "--no-color"]
        command += ["--suppress-health-check", "all", "--warnings", "off"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert counted is not None, done.stdout[-2000:]
        assert int(counted[1]) == int(counted[2]) >= least
        assert process.get("/health")[0] == 200
