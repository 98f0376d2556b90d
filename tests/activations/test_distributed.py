"""Calibration on two processes, or in shards, gives what one process gives; a process that fails is named."""

import time
from pathlib import Path

import pytest
from launched import launch
from same import assert_same
from toy import folder, texts_file

from seap.activations.distributed import share
from seap.activations.layerwise import split_rows
from seap.activations.ranks import Ranks
from seap.cli.main import main
from seap.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_rows_and_hold_out_the_same(size: int) -> None:
    rows = tuple((i, i) for i in range(33))
    parts = [share(rows, Ranks(rank, size)) for rank in range(size)]
    assert sorted(row for part in parts for row in part) == list(rows)
    fit = sorted(row for part in parts for row in split_rows(part)[0])
    assert fit == split_rows(rows)[0]


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Uneven shares: 32 texts are seven groups of five, so four and three."""
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    words = ["calibrate", dense, "--task", task, "--second-moments", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = launch([*words, "--out", "two"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("toy.safetensors") == 1  # rank 0 alone speaks
    assert_same(tmp_path / "one" / "toy.safetensors", tmp_path / "two" / "toy.safetensors")


def test_shards_are_merged_to_what_one_process_gives(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    words = ["calibrate", dense, "--task", task, "--second-moments", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    for part in range(3):
        assert main([*words, str(tmp_path / str(part)), "--shard", f"{part}/3"]) == 0
    files = [str(tmp_path / str(part) / "toy.safetensors") for part in range(3)]
    assert main(["merge", *files, "--out", str(tmp_path / "all.safetensors")]) == 0
    assert_same(tmp_path / "one" / "toy.safetensors", tmp_path / "all.safetensors")


REDUCED = """
import torch, torch.distributed as dist
from seap.activations.distributed import _added
from seap.activations.moments import Moments
from seap.activations.ranks import Ranks, joined
ranks = Ranks.here()
rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
whole = Moments.of(rows, second=True, blocks=2)
mine = Moments.of(rows[:29] if ranks.rank == 0 else rows[29:], second=True, blocks=2)
with joined(ranks):
    found = _added(mine, 6, 2, False, torch.device("cpu"), ranks)
    nothing = _added(mine if ranks.rank else None, 6, 2, False, torch.device("cpu"), ranks)
for name in ("mean", "m2", "co"):
    torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-13, atol=1e-13)
assert found.count == 40 and nothing.count == 11
"""


def test_the_sum_over_ranks_is_exact_to_float64_rounding(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(REDUCED)
    done = launch([], tmp_path, "run.py")
    assert done.returncode == 0, done.stderr


FAILING = """
import os, sys
import seap.activations.distributed as distributed
from seap.cli.main import main
measure = distributed.measure

def fail(*args, **kwargs):
    if os.environ["RANK"] == "1":
        {how}
    return measure(*args, **kwargs)

distributed.measure = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("how", "said"), [("raise ValueError('no')", "rank 1 of 2 failed"), ("os._exit(3)", "rank")])
def test_a_rank_that_fails_ends_the_run_with_its_name(how: str, said: str, tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    (tmp_path / "run.py").write_text(FAILING.format(how=how))
    started = time.monotonic()
    done = launch(["calibrate", dense, "--task", task, "--out", "two", "--device", "cpu"], tmp_path, "run.py")
    assert done.returncode != 0 and time.monotonic() - started < 200
    assert said in done.stderr and ("rank      : 1" in done.stderr or said == "rank 1 of 2 failed"), done.stderr
    assert not (tmp_path / "two" / "toy.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--shard 4/4", "--shard 4/4: must be I/N"),
        ("--shard one", "--shard one: must be I/N"),
        ("--shard 11/12", "use fewer shards"),
    ],
)
def test_bad_shards_are_refused(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    assert main(["calibrate", dense, "--task", task, "--out", str(tmp_path / "o"), *words.split()]) == 1
    assert said in capsys.readouterr().err


def test_only_what_is_dealt_out_runs_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", "builtin", "--task", "arithmetic", "--out", str(tmp_path / "o")]) == 1
    assert "torchrun is for seap calibrate and seap prune" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setenv("RANK", "zero")
    with pytest.raises(UserError, match="must be numbers"):
        Ranks.here()
