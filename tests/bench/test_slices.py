"""The bench of slices on narrow models: what it prints, and how it reads names of slices and kernels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from serve import slices  # noqa: E402
from serve.step_profile import Interval, between_steps, idle_time, short_name  # noqa: E402

NARROW = {"hidden_size": 256, "intermediate_size": 128, "num_attention_heads": 8, "vocab_size": 1000}
NARROW |= {"num_local_experts": 8, "max_position_embeddings": 4096}
M3_NARROW = NARROW | {"dense_intermediate_size": 128, "shared_intermediate_size": 128}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dense=1,sparse=1", []),
        ("layers=2", []),
        ("dense=1,sparse=1", ["--parallel", "tensor_parallel_size=2", "expert_parallel=true"]),
    ],
)
def test_a_slice_is_measured(
    name: str,
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(slices, "M3", slices.M3 | M3_NARROW)
    monkeypatch.setattr(slices, "M2", slices.M2 | NARROW)
    file = tmp_path / "result.json"
    lengths = ["--prefill", "16", "--prompt", "8", "--batches", "1", "2", "--tokens", "3", "--repeats", "1"]
    monkeypatch.setattr(
        sys, "argv", ["slices.py", "--slice", name, "--device", "cpu", "--json", str(file), *lengths, *more]
    )
    slices.main()
    result = json.loads(file.read_text())[name]
    assert result["start_to_ready_s"] > 0
    assert [row.get("batch") for row in result["rows"]] == [None, 1, 2]
    assert len(result["rows"]) == 3
    assert all(row.get("ttft_ms", 0) > 0 or row["tpot_ms"] > 0 for row in result["rows"])
    assert "ready after" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "layers=0", "layers=two", "dense=1", "dense=0,sparse=0", "sparse"])
def test_other_names_of_slices_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="slice must be dense=N,sparse=N or layers=N"):
        slices.slice_config(name)


def test_kernel_names_are_shortened() -> None:
    name = "void mmx::cuda::(anonymous namespace)::linear_kernel<float, true>(mmx::LinearParams)"
    assert short_name(name) == "linear_kernel"
    assert short_name("Memcpy HtoD (Pinned -> Device)") == "Memcpy HtoD"


def test_idle_time_counts_gaps_of_all_and_of_the_ends_of_steps() -> None:
    names = ["embedding_kernel", "linear", "sample_kernel", "Memcpy DtoH", "embedding_kernel", "linear"]
    begins, ends = [0, 10, 25, 32, 40, 50], [10, 20, 30, 35, 48, 60]
    intervals = [Interval(*parts) for parts in zip(names, begins, ends, strict=True)]
    assert idle_time(intervals) == 5 + 2 + 5 + 2
    assert between_steps(intervals) == 2 + 5
