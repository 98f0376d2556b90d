"""What this process is granted of the machine: cores and memory, by affinity and control groups. Imports no torch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def allowed_cores() -> frozenset[int]:
    """The cores that this process may run on (its affinity, which a container's cpuset is part of)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def granted_cores(root: Path = Path("/")) -> int:
    """Whole cores at most: allowed, real (of two threads of one core the second adds little), and in the quotas."""
    import psutil

    allowed, physical = len(allowed_cores()), psutil.cpu_count(logical=False)
    logical = os.cpu_count() or 1
    real = allowed if not physical else max(allowed * physical // logical, 1)
    return max(min([allowed, real, *(int(quota) for quota in quotas(root))]), 1)


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """Cores that each control group above this process grants (cgroup v2's cpu.max, v1's cfs_quota_us)."""
    for group in _groups(root, "cpu"):
        numbers = _numbers(group / "cpu.max") or [
            *_numbers(group / "cpu.cfs_quota_us"),
            *_numbers(group / "cpu.cfs_period_us"),
        ]
        if len(numbers) == 2 and min(numbers) > 0:
            yield numbers[0] / numbers[1]


def granted_memory(root: Path = Path("/")) -> float:
    """Bytes that the control groups above this process still leave it; without a limit, infinity.

    Files that are kept in memory count in a group's use, but give way.
    """
    left = math.inf
    for group in _groups(root, "memory"):
        limit = _numbers(group / "memory.max") or _numbers(group / "memory.limit_in_bytes")
        used = _numbers(group / "memory.current") or _numbers(group / "memory.usage_in_bytes")
        if limit and used:
            left = min(left, max(limit[0] - used[0] + _cached(group / "memory.stat"), 0))
    return left


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Every group that this process is in, up to the root of its tree; in a container only the root may be there."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for name in dict.fromkeys((controllers, controller) if controllers else ("", "unified")):
            mount = root / "sys/fs/cgroup" / name
            place = mount / path.lstrip("/")
            for group in [place, *place.parents]:
                yield group
                if group == mount:
                    break


def _cached(file: Path) -> int:
    """Bytes of files in a group's memory."""
    try:
        words = dict(line.split() for line in file.read_text().splitlines())
        return int(words.get("total_inactive_file", words.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def _numbers(file: Path) -> list[int]:
    """`50000 100000` → [50000, 100000]; nothing where there is no file or it grants everything (max)."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
