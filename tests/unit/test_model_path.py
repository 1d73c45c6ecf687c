"""Which folder a model argument means."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmx.errors import ConfigError
from mmx.model_path import demo_model_path, model_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path / "hub"


def snapshot(cache: Path, name: str, commit: str, file: str = "config.json") -> Path:
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    return folder


def test_a_folder_is_itself(cache: Path, tmp_path: Path) -> None:
    folder = snapshot(cache, "org/m3", "abc")
    assert model_path(str(folder)) == folder
    assert model_path(None) == demo_model_path()
    with pytest.raises(ConfigError, match=r"must be a folder with a config\.json, .* has none"):
        model_path(str(tmp_path))


def test_an_id_is_found_in_the_hub_cache(cache: Path) -> None:
    with pytest.raises(ConfigError, match="not 'org/m3'; hf download org/m3 fetches it"):
        model_path("org/m3")
    snapshot(cache, "org/m3", "0", "tokenizer.json")
    first, main = snapshot(cache, "org/m3", "1"), snapshot(cache, "org/m3", "2")
    assert model_path("org/m3") == first
    refs = cache / "models--org--m3" / "refs"
    refs.mkdir()
    (refs / "main").write_text("2\n")
    assert model_path("org/m3") == main


def test_a_path_that_is_not_there(cache: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        model_path("/models/none")
    expected = "model must be a checkpoint folder or an id in the hub cache, not '/models/none'"
    assert str(refused.value) == expected
