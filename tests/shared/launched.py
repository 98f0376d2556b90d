"""Commands in processes of their own, as a user starts them: under torchrun, and on a cluster of Ray's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import HELPERS, ROOT


def launch(words: list[str], tmp_path: Path, script: str = "seap", size: int = 2) -> subprocess.CompletedProcess[str]:
    """Run under torchrun as a user does; `script` is a module or a file."""
    start = ["-m", script] if script == "seap" else [script]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *start]
    path = os.pathsep.join([str(ROOT), str(HELPERS)])
    return subprocess.run(
        [sys.executable, *command, *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def launch_alone(words: list[str], tmp_path: Path, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run as a user does, on a local cluster that ends with the process."""
    pytest.importorskip("ray.data", reason="Ray Data isn't installed: pip install 'seap[ray]'")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    hidden = {"RAY_ADDRESS", "RANK", "WORLD_SIZE"}
    return subprocess.run(
        [sys.executable, *(["-c", script] if script else ["-m", "seap"]), *words],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in hidden} | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,  # a cluster takes 20 seconds to start, and minutes on a machine that does much else
        check=False,
    )
