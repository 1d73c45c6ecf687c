"""The Ascend backend with a stand-in for torch_npu, in processes of their own: torch keeps a device type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mmx
from mmx.backend import resolve_backend
from mmx.errors import ConfigError

FAKE = Path(__file__).with_name("fake_torch_npu.py")
BEGIN = "import torch, torch_npu\nfrom mmx.backend import Recorder, resolve_backend, use_local_device\n"


def run(folder: Path, program: str, **variables: str) -> None:
    """Run ``program`` where ``torch_npu`` is the stand-in; its assertions are the test's."""
    shutil.copy(FAKE, folder / "torch_npu.py")
    paths = [str(folder), str(Path(mmx.__file__).parents[1])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(program)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_torch_npu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(
        ConfigError, match="device npu needs torch_npu, which can not be imported: "
    ) as caught:
        resolve_backend("npu")
    assert "\n" not in str(caught.value)


def test_a_missing_device_is_one_sentence(tmp_path: Path) -> None:
    program = """
    from mmx.errors import ConfigError
    try:
        resolve_backend("npu")
    except ConfigError as error:
        assert str(error) == "device npu needs an Ascend NPU and its driver, torch_npu sees none"
    else:
        raise AssertionError
    """
    run(tmp_path, program, FAKE_NPUS="0")


@pytest.mark.parametrize(("count", "name"), [("2", "npu"), ("0", "cpu")])
def test_auto_takes_an_npu_where_there_is_one(tmp_path: Path, count: str, name: str) -> None:
    run(
        tmp_path, f"assert resolve_backend('auto').name == {name!r}", FAKE_NPUS=count, CUDA_VISIBLE_DEVICES=""
    )


def test_facts_of_the_device(tmp_path: Path) -> None:
    program = """
    npu = resolve_backend("npu")
    assert (npu.name, npu.device) == ("npu", torch.device("npu", 0))
    assert (npu.has_graphs, npu.has_fp8, npu.pool_share) == (True, False, None)
    assert (npu.total_memory(), npu.free_memory()) == (64 << 30, 60 << 30)
    def step():
        torch_npu.CALLS.append("step")
        torch_npu.STATE["reserved"] = 17
    assert npu.peak_memory(step) == 7
    assert torch_npu.CALLS == [
        "synchronize", "empty_cache", "reset_peak", "step", "synchronize", "empty_cache"
    ]
    """
    run(tmp_path, program)


def test_one_engine_plans_at_a_time_on_the_machines_device(tmp_path: Path) -> None:
    program = """
    import fcntl, os, tempfile
    from pathlib import Path
    use_local_device("npu", 1)
    with resolve_backend("npu").planning():
        with open(Path(tempfile.gettempdir()) / "mmx-npu-6.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                raise AssertionError("not locked")
    """
    run(tmp_path, program, ASCEND_RT_VISIBLE_DEVICES="4, 6", TMPDIR=str(tmp_path))


def test_each_local_rank_takes_its_device(tmp_path: Path) -> None:
    program = """
    from mmx.errors import ConfigError
    assert use_local_device("npu", 1) == torch.device("npu", 1)
    try:
        use_local_device("npu", 2)
    except ConfigError as error:
        assert str(error) == "local rank 2 needs an NPU of its own, this machine shows 2"
    else:
        raise AssertionError
    """
    run(tmp_path, program)


def test_faults_become_errors_of_the_engine(tmp_path: Path) -> None:
    program = """
    from mmx.errors import DeviceLostError
    npu = resolve_backend("npu")
    def fails(error, kind, message):
        try:
            with npu.faults():
                raise error
        except kind as caught:
            assert type(caught) is kind and str(caught) == message, caught
        else:
            raise AssertionError
    fails(torch.OutOfMemoryError("no memory\\nmap"), MemoryError, "no memory")
    fails(RuntimeError("refused"), RuntimeError, "refused")
    torch_npu.STATE["lost"] = 1
    fails(RuntimeError("launch\\nmore"), DeviceLostError, "the NPU has failed: launch")
    """
    run(tmp_path, program)


def test_steps_are_recorded_into_one_pool(tmp_path: Path) -> None:
    program = """
    recorder = Recorder(torch.device("npu", 0))
    def step():
        torch_npu.CALLS.append("step")
        return torch.arange(3)
    replays = []
    for _ in range(2):
        replay, result = recorder.record(step)
        assert result.tolist() == [0, 1, 2]
        replays.append(replay)
    recorded = ["synchronize", "begin pool", "step", "end"]
    assert torch_npu.CALLS == 2 * recorded
    replays[0]()
    assert torch_npu.CALLS == [*recorded, *recorded, "replay"]
    """
    run(tmp_path, program)
