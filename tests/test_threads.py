"""Threads: no more than are granted, allowed and free, no spinning, and the user's own settings win."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from seap import threads
from seap.grants import granted_cores, granted_memory, quotas
from seap.threads import Sample, counts_up_to, fewest, free_cores


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def test_quotas_of_both_kinds_of_control_groups_and_of_all_groups_above(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/m\n3:cpu,cpuacct:/jobs/one\n0::/user/app")
    write(tmp_path / "sys/fs/cgroup/user/app/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/user/cpu.max", "350000 100000")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/jobs/one/cpu.cfs_quota_us", "150000")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/jobs/one/cpu.cfs_period_us", "100000")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert sorted(quotas(tmp_path)) == [1.5, 3.5]
    assert granted_cores(tmp_path) == 1


def test_inside_a_container_the_quota_lies_at_the_root(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/../elsewhere")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "50000 100000")
    assert 0.5 in list(quotas(tmp_path))
    assert granted_cores(tmp_path) == 1


def test_memory_that_a_group_grants_and_what_files_take_of_it(tmp_path: Path) -> None:
    assert granted_memory(tmp_path) == float("inf")
    write(tmp_path / "proc/self/cgroup", "4:memory:/jobs/one")
    write(tmp_path / "sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes", "4000")
    write(tmp_path / "sys/fs/cgroup/memory/jobs/one/memory.usage_in_bytes", "3000")
    write(tmp_path / "sys/fs/cgroup/memory/jobs/one/memory.stat", "cache 900\ntotal_inactive_file 500")
    assert granted_memory(tmp_path) == 1500
    write(tmp_path / "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "1000")
    write(tmp_path / "sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "700")
    assert granted_memory(tmp_path) == 300


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert list(quotas(tmp_path)) == []
    assert granted_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("others", "own", "granted", "expected"),
    [(0.0, 0.0, 8, 8), (0.2, 1.0, 8, 8), (1.0, 1.0, 8, 7), (2.6, 0.5, 8, 5), (9.0, 0.2, 8, 1), (0.0, 0.0, 2, 2)],
)
def test_cores_that_others_use_are_not_free(
    others: float, own: float, granted: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: frozenset(range(8)))
    before, after = Sample(10.0, 100.0, 5.0), Sample(12.0, 100.0 + 2 * (others + own), 5.0 + 2 * own)
    assert free_cores(before, after, granted) == expected


def test_the_fewest_threads_that_help() -> None:
    assert [*counts_up_to(1)] == [1] and [*counts_up_to(6)] == [1, 2, 4, 6]
    assert fewest({1: 1.0, 2: 0.95, 4: 1.4}) == 1
    assert fewest({1: 1.0, 2: 0.55, 4: 0.52}) == 2


def test_settle_measures_what_there_is_room_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    count, ran = torch.get_num_threads(), []
    monkeypatch.setattr(threads._Start, "sample", Sample(0.0, 0.0, 0.0))
    monkeypatch.setattr(threads, "free_cores", lambda *_: 4)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)

    def seconds() -> float:
        ran.append(chosen[-1])
        return {1: 1.0, 2: 0.5, 4: 0.6}[chosen[-1]]

    threads.settle(seconds)
    threads.settle(seconds)
    assert set(ran) == {1, 2, 4} and chosen[-1] == 2 and len(ran) == 12
    assert torch.get_num_threads() == count


ASK = """
import json, os, sys
from seap.cli.main import main
assert "torch" not in sys.modules
main(["tasks", "--json"])
import torch
names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
print(json.dumps({name: os.environ.get(name) for name in names}))
"""


def settings(**own: str) -> dict[str, str | None]:
    clean = {name: value for name, value in os.environ.items() if name not in (*threads.WAITS, *threads.COUNTS)}
    environment = clean | {"PYTHONPATH": str(ROOT)} | own
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment, check=True)
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_command_line_says_how_to_wait_before_torch_loads() -> None:
    found = settings()
    assert found["OMP_WAIT_POLICY"] == "passive" and found["GOMP_SPINCOUNT"] == "0"


def test_the_users_own_settings_win() -> None:
    found = settings(OMP_WAIT_POLICY="active", OMP_NUM_THREADS="3")
    assert found == {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None, "OMP_NUM_THREADS": "3"}


def test_a_process_that_has_torch_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401

    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.prepare()
    assert "OMP_WAIT_POLICY" not in os.environ and threads._Start.sample is None
