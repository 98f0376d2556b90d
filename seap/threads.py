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

from seap.grants import allowed_cores, granted_cores

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
