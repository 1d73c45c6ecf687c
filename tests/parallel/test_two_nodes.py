"""Two nodes with networks of their own: every form serves, and a cut cable ends both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A user namespace of one's own, if the system allows it, may have networks.
ALONE = ("unshare", "--user", "--map-root-user", "--net")


def has_namespaces() -> bool:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    cable = ("ip", "link", "add", "card0", "type", "veth", "peer", "name", "card1")
    return subprocess.run([*ALONE, *cable], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="no network namespaces here (unshare, nsenter, ip)")
@pytest.mark.parametrize("form", ["torchrun", "slurm", "headless", "cut"])
def test_two_nodes(form: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "parallel.two_nodes", form, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    logs = "\n".join(log.read_text()[-3000:] for log in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
