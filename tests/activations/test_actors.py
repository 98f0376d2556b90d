"""Calibration by two of Ray's actors gives what one process gives; one that fails or dies ends the run."""

import json
import sys
from pathlib import Path

import pytest
import torch
from launched import launch_alone
from same import assert_same
from toy import TEXTS, folder, texts_file

from seap.activations.actors import _moments, _records, resources, split
from seap.activations.moments import Moments
from seap.activations.stats import from_bytes, to_bytes
from seap.cli.main import main
from seap.errors import UserError
from seap.text.corpus import Corpus


@pytest.mark.slow
def test_two_actors_give_what_one_process_gives(tmp_path: Path) -> None:
    """Two tasks; uneven shards: seven groups of five texts are four and three."""
    dense = str(folder(tmp_path / "dense"))
    tasks = [f"toy={texts_file(tmp_path / 'toy.txt')}", f"few={texts_file(tmp_path / 'few.txt', TEXTS[:9])}"]
    words = ["calibrate", dense, "--task", tasks[0], "--task", tasks[1], "--second-moments", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = launch_alone([*words, "--out", "two", "--ray", "2", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [entry["task"] for entry in json.loads(done.stdout)["files"]] == ["toy", "few"]
    for task in ("toy", "few"):
        assert_same(tmp_path / "one" / f"{task}.safetensors", tmp_path / "two" / f"{task}.safetensors")


DYING = """
import os
from seap.activations import actors

class Dying(actors.Measurer):
    def __call__(self, batch):
        if batch["shard"].tolist() == [1]:
            os._exit(3)
        yield from super().__call__(batch)

actors.Measurer = Dying
"""


@pytest.mark.slow
def test_an_actor_that_dies_ends_the_run(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    words = ["calibrate", dense, "--task", task, "--out", "two", "--device", "cpu", "--ray", "2"]
    (tmp_path / "dying.py").write_text(DYING)  # a module, which Ray's processes can import too
    done = launch_alone(
        words, tmp_path, "import sys, dying; from seap.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    assert done.returncode == 1  # and it ended: launch_alone waits for so long and no longer
    assert "an actor of Ray's is gone" in done.stderr, done.stderr
    assert not (tmp_path / "two" / "toy.safetensors").exists()


def test_a_shard_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="shard 1 of 2 failed: NaN at layer 3"):
        list(_moments((_row(record) for record in _records(1, "failed", b"NaN at layer 3")), 2))


def _row(record: dict[str, list[object]]) -> dict[str, object]:
    return {name: value for name, [value] in record.items()}


def test_moments_travel_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.activations.actors.PIECE", 100)
    rows = torch.randn(9, 5)
    sent = Moments.of(rows, second=True)
    sent.held = Moments.of(rows[:3], second=True)
    records = [_row(record) for record in _records(0, "layers.0.channels", to_bytes(sent))]
    assert len(records) > 4 and [record["last"] for record in records].count(True) == 1
    [(shard, key, found)] = _moments(records, 1)
    assert (shard, key, found.count) == (0, "layers.0.channels", 9) and found.held is not None
    assert torch.equal(found.co, sent.co) and torch.equal(found.held.co, sent.held.co)  # type: ignore[arg-type]
    plain = from_bytes(to_bytes(Moments.of(rows)))
    assert plain.co is None and plain.held is None


def test_few_rows_are_few_shards() -> None:
    corpus = Corpus("toy", tuple((i, i) for i in range(12)), "test")
    assert [len(part.rows) for part in split(corpus, 2)] == [7, 5] and len(split(corpus, 8)) == 3


def node(cpus: int, gpus: int = 0, *, alive: bool = True) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}


def test_actors_share_what_the_cluster_has() -> None:
    assert resources(2, [node(16)], "auto") == {"num_cpus": 8, "num_gpus": 0}
    assert resources(3, [node(5), node(4)], "cpu") == {"num_cpus": 2, "num_gpus": 0}  # 2 + 2 of them; 3 each is two
    assert resources(2, [node(8, 2)], "auto") == {"num_cpus": 1, "num_gpus": 1}
    assert resources(2, [node(8, 2)], "cpu") == {"num_cpus": 4, "num_gpus": 0}
    with pytest.raises(UserError, match="--ray 4: Ray's cluster has 2 CPUs; use --ray 2 or fewer"):
        resources(4, [node(2), node(9, alive=False)], "auto")
    with pytest.raises(UserError, match="--ray 4: Ray's cluster has 2 GPUs; use --ray 2 or --device cpu"):
        resources(4, [node(16, 2)], "auto")


@pytest.mark.parametrize(
    ("ray", "ranks", "said"),
    [("0", "1", "--ray 0: must be at least 1"), ("2", "2", "run it without torchrun")],
)
def test_what_makes_no_sense_is_refused(
    ray: str, ranks: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", ranks)
    task = f"toy={texts_file(tmp_path / 'toy.txt')}"
    assert main(["calibrate", "builtin", "--task", task, "--out", str(tmp_path / "o"), "--ray", ray]) == 1
    assert said in capsys.readouterr().err


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    task = f"toy={texts_file(tmp_path / 'toy.txt')}"
    assert main(["calibrate", "builtin", "--task", task, "--out", str(tmp_path / "o"), "--ray", "2"]) == 1
    assert '--ray needs Ray Data, which is not installed: pip install "seap[ray]"' in capsys.readouterr().err
