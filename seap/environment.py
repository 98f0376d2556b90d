"""Where a number comes from: versions, machine, commit, command."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
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
    if _recipe:
        return _recipe[-1][0]
    program = Path(sys.argv[0])
    name = "seap" if program.parts[-2:] == ("seap", "__main__.py") else program.name
    return " ".join([name, *sys.argv[1:]])


_recipe: list[tuple[str, dict[str, Any]]] = []  # the step that runs now, if one does


@contextlib.contextmanager
def in_recipe(command: str, recipe: dict[str, Any]) -> Iterator[None]:
    """What is made in the block was made by this command, the step of a recipe, whose content is told with it."""
    _recipe.append((command, recipe))
    try:
        yield
    finally:
        _recipe.pop()


def made_by() -> dict[str, Any]:
    """The command that makes a result and, in a recipe, which step of what."""
    return {"command": command_line()} | ({"recipe": _recipe[-1][1]} if _recipe else {})


def provenance() -> dict[str, Any]:
    """What every result file says of its making: versions, machine, commit and command."""
    return {"versions": versions(), "machine": machine(), "commit": commit(), **made_by()}


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
