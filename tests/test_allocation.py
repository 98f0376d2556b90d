"""Memory that was freed is used again, which the number of pages that the system handed out tells."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

COUNT = """
import resource, sys
from seap.allocation import keep_freed
if sys.argv[1] == "kept":
    print(keep_freed())
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""

WHILE = """
import contextlib, sys
from seap.allocation import giving_back, keep_freed
import torch
def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
def freed():
    held = [torch.ones(16 << 20) for _ in range(6)]  # 64 MB each
    before, last = resident(), torch.ones(1 << 20)
    del held
    return before - resident()
print(keep_freed())
with giving_back():
    print(freed())
print(freed())
"""

GIVEN = """
from seap.allocation import give_back, keep_freed
import torch
def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
print(keep_freed())
held = [torch.ones(4 << 20) for _ in range(24)]  # 16 MB each
last = torch.ones(1 << 20)  # behind them: the heap's end isn't free
del held
print(resident())
give_back()
print(resident())
"""


def run(how: str, environment: dict[str, str] | None = None) -> list[str]:
    words = [sys.executable, "-c", {"given": GIVEN, "while": WHILE}.get(how, COUNT), how]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_blocks_of_a_batch_are_not_handed_out_anew() -> None:
    [kept, few], [many] = run("kept"), run("plain")
    if kept != "True":
        pytest.skip("another C library")
    assert int(few) < int(many) / 20


def test_what_the_user_set_stays() -> None:
    assert run("kept", os.environ | {"MALLOC_TRIM_THRESHOLD_": "131072"})[0] == "False"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_lies_free_between_stages_goes_back() -> None:
    kept, before, after = run("given")
    if kept != "True":
        pytest.skip("another C library")
    assert int(before) - int(after) > 300 << 10  # kB, of the 384 MB that were freed


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_solve_frees_goes_back_at_once_and_is_kept_again_after_it() -> None:
    kept, during, after = run("while")
    if kept != "True":
        pytest.skip("another C library")
    assert int(during) > 300 << 10  # kB, of the 384 MB that were freed
    assert int(after) < 100 << 10
