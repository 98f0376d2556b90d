"""Where a number comes from: versions, machine, commit, command."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str]:
    """Of everything that decides a number."""
    names = ("seap", "transformers", "safetensors", "numpy")
    return {"python": platform.python_version(), "torch": torch.__version__} | {name: version(name) for name in names}


def machine() -> dict[str, Any]:
    """The hardware that a number was measured on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in _lines(info) if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = names[0] if names else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def commit() -> str | None:
    """Of the checkout that this code runs from; None where it isn't in one."""
    run = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return None
    return done.stdout.strip() or None


def command_line() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """What every result file says of its making: versions, machine, commit and command."""
    return {"versions": versions(), "machine": machine(), "commit": commit(), "command": command_line()}


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
