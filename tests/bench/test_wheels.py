from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("wheels", ROOT / "bench" / "wheels.py")
assert spec is not None and spec.loader is not None
wheels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheels)


def test_a_machine_that_has_everything_needs_nothing() -> None:
    needs = wheels.needed_by_mmx(ROOT / "pyproject.toml")
    names = {need.name for need in needs}
    assert {"torch", "pybind11", "scikit-build-core", "aiohttp"} <= names
    freeze = "\n".join(f"{name.upper().replace('-', '_')}==1.0" for name in names) + "\nmine @ file:///mine\n"
    assert wheels.missing(needs, wheels.names_in_freeze(freeze), "3.12") == []
    assert "mine" in wheels.names_in_freeze(freeze)


def test_conditions_are_those_of_the_other_machine(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    lines = ["Name: a", "Requires-Dist: B.c>=1", "Requires-Dist: old; python_version < '3.11'"]
    lines += ["Requires-Dist: windows; sys_platform == 'win32'", "Requires-Dist: more; extra == 'all'"]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", "\n".join(lines) + "\n\nText: not a header\n")
    needs = wheels.needed_by_wheel(wheel)
    assert len(needs) == 4
    assert [need.name for need in wheels.missing(needs, set(), "3.12")] == ["B.c"]
    assert [need.name for need in wheels.missing(needs, {"b-c"}, "3.10")] == ["old"]


def test_no_wheel_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> object:
        return type(
            "Done", (), {"returncode": 1, "stderr": "WARNING: x\nERROR: No matching distribution\n"}
        )()

    monkeypatch.setattr(wheels.subprocess, "run", refuse)
    with pytest.raises(
        RuntimeError, match=r"no wheel of a>=2 for Python 3.12: ERROR: No matching distribution"
    ):
        wheels.download(wheels.Requirement("a>=2"), "3.12", tmp_path)
