"""How many threads this process computes with, and how they wait for each other. Imports no torch.

Threads that spin while they wait take the core from the one that they wait for wherever another process wants it too: a
step of a small model then takes ten times as long with two threads as with one. So the command line has threads sleep
(`prepare`, before torch loads and its OpenMP reads the environment), and takes no more of them than there are cores
free, and of these only as many as help the model at hand (`settle`). What the user sets himself stays.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITS = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}
SLACK = 0.3  # of a core that others may take before it counts as theirs
WORTH = 1.1  # how many times as fast more threads must be


@dataclass(frozen=True)
class Sample:
    """A moment of the machine: seconds that its cores were busy, and this process, since some time in the past."""

    at: float
    busy: float  # of the cores that this process may run on
    own: float  # with children that have ended

    @classmethod
    def now(cls, cores: frozenset[int]) -> "Sample":
        import psutil

        busy = 0.0
        for index, times in enumerate(psutil.cpu_times(percpu=True)):
            if index in cores or not cores:
                guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user and nice as well
                busy += sum(times) - times.idle - getattr(times, "iowait", 0.0) - guests
        return cls(time.monotonic(), busy, sum(os.times()[:4]))


class _Start:
    """When the command line started; None in a process that isn't ours to set up."""

    sample: Sample | None = None


def prepare() -> None:
    """Set the environment of a command line's process, before torch loads; nothing happens once it has.

    Whoever has said how threads wait, or how many there are, is left to it.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in WAITS):
        os.environ.update(WAITS)
    if any(name in os.environ for name in COUNTS):
        return
    granted = granted_cores()
    if granted < len(allowed_cores()):
        os.environ["OMP_NUM_THREADS"] = str(granted)
    _Start.sample = Sample.now(allowed_cores())


def settle(seconds: Callable[[], float] | None) -> None:
    """Choose the number of threads, once per process: the fewest that are about as fast as any that there is room for.

    seconds: runs a piece of the work and says how long it took; None where all free cores are sure to help. Nothing
    happens without `prepare`.
    """
    start, _Start.sample = _Start.sample, None
    if start is None:
        return
    import torch

    free = free_cores(start, Sample.now(allowed_cores()), granted_cores())
    torch.set_num_threads(free)
    if seconds is None or free == 1:
        return
    taken: dict[int, float] = {}
    for count in sorted({*counts_up_to(free)}):
        torch.set_num_threads(count)
        seconds()  # threads start
        taken[count] = min(seconds() for _ in range(3))
    torch.set_num_threads(fewest(taken))


def counts_up_to(most: int) -> Iterator[int]:
    """1, 2, 4 … and the most itself."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def fewest(taken: Mapping[int, float]) -> int:
    """The smallest number of threads whose seconds are near the least."""
    return min(count for count, seconds in taken.items() if seconds <= WORTH * min(taken.values()))


def free_cores(before: Sample, after: Sample, granted: int) -> int:
    """Whole cores that others left free between two samples, at least 1; granted: the most there can be."""
    passed = max(after.at - before.at, 1e-9)
    others = max((after.busy - before.busy) - (after.own - before.own), 0.0) / passed
    return max(min(int(len(allowed_cores()) - others + SLACK), granted), 1)


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
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for name in ("", "unified") if not controllers else (controllers, "cpu"):
            yield from _quotas_along(root / "sys/fs/cgroup" / name, path)


def _quotas_along(mount: Path, path: str) -> Iterator[float]:
    """From a group up to the root of its tree; inside a container only the root may be there to read."""
    place = mount / path.lstrip("/")
    for group in [place, *place.parents]:
        numbers = _numbers(group / "cpu.max") or [
            *_numbers(group / "cpu.cfs_quota_us"),
            *_numbers(group / "cpu.cfs_period_us"),
        ]
        if len(numbers) == 2 and min(numbers) > 0:
            yield numbers[0] / numbers[1]
        if group == mount:
            return


def _numbers(file: Path) -> list[int]:
    """`50000 100000` → [50000, 100000]; nothing where there is no file or it grants everything (max, -1)."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
