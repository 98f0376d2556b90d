"""seap pack: networks from tasks, pruned folders and masks, which run as the pruned checkpoints do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from routed import tasks_files
from tiny import ids
from toy import folder, texts_file

import seap
from seap.cli.main import main
from seap.serving.networks import packing
from seap.serving.networks.network import load_networks, unrepaired
from seap.serving.networks.packing import pack_to_files

OPTIONS = ["--search-evaluations", "2"]


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_from_a_task_a_folder_and_a_mask(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three ways give one network, and it is that of the saved checkpoint."""
    net, out, stats = folder(tmp_path / "net", name, intermediate_size=80), tmp_path / "tasks", tmp_path / "stats"
    task = f"words={texts_file(tmp_path / 'words.txt')}"
    assert main(["prune", str(net), "--task", task, "--out", str(tmp_path / "small"), *OPTIONS]) == 0
    assert main(["calibrate", str(net), "--task", task, "--second-moments", "--out", str(stats)]) == 0
    file, mask = str(stats / "words.safetensors"), str(tmp_path / "mask.safetensors")
    assert main(["mask", str(net), file, "--out", mask, *OPTIONS]) == 0
    assert main(["pack", str(net), mask, "--out", str(out)]) == 1
    assert "needs the statistics of words" in capsys.readouterr().err
    sources = [f"folder={tmp_path / 'small'}", f"mask={mask}", "--stats", file]
    assert main(["pack", str(net), *sources, "--task", task, "--out", str(out), *OPTIONS, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["files"]
    assert [about["task"] for about in made] == ["folder", "mask", "words"]

    assert main(["inspect", str(out / "words.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "network" and any(
        "rebuilt" in units for layer in found["layers"] for units in layer.values()
    )
    assert main(["inspect", str(out / "words.safetensors")]) == 0 and "rebuilt" in capsys.readouterr().out
    model, _ = seap.load(str(net))
    small, _ = seap.load(str(tmp_path / "small"))
    networks = load_networks(out, model)
    runtime = seap.TaskRuntime(model, networks)
    with torch.no_grad():
        expected = small(ids()).logits
        for network in networks:
            with runtime.task(network) as current:
                assert torch.allclose(current(ids()).logits, expected, atol=2e-5), network


def test_stopped_between_two_files_it_goes_on_with_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, mask, out = folder(tmp_path / "net", intermediate_size=80), str(tmp_path / "m.safetensors"), tmp_path / "out"
    assert main(["mask", str(net), "--method", "magnitude", "--out", mask]) == 0
    words = ["pack", str(net), f"a={mask}", f"b={mask}", "--out", str(out), "--json"]
    write = packing._write

    def stopped_at_b(model: Any, path: Path, *rest: Any) -> Any:
        if path.stem == "b":
            raise KeyboardInterrupt
        return write(model, path, *rest)

    monkeypatch.setattr(packing, "_write", stopped_at_b)
    with pytest.raises(KeyboardInterrupt):
        pack_to_files(str(net), out, sources=[f"a={mask}", f"b={mask}"], progress=False)
    assert [path.name for path in out.iterdir()] == ["a.safetensors"]
    monkeypatch.undo()
    before = (out / "a.safetensors").stat()
    capsys.readouterr()
    assert main(words) == 0
    made = json.loads(capsys.readouterr().out)["files"]
    assert [(about["task"], about["skipped"]) for about in made] == [("a", True), ("b", False)]
    after = (out / "a.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in out.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_networks_that_lose_query_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a task and from the folder that prune made of it, one network; and one beside it that owns a part."""
    net, out = folder(tmp_path / "net", num_key_value_heads=2, intermediate_size=80), tmp_path / "tasks"
    task = f"words={texts_file(tmp_path / 'words.txt')}"
    options = [*OPTIONS, "--heads", "query", "--sparsity", "0.5"]
    assert main(["prune", str(net), "--task", task, "--out", str(tmp_path / "small"), *options]) == 0
    sources = [f"folder={tmp_path / 'small'}", "--task", task]
    assert main(["pack", str(net), *sources, "--out", str(out), *options]) == 0
    assert main(["pack", str(net), "--task", task, "--share", "0.2", "--out", str(tmp_path / "less"), *options]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out / "words.safetensors"), "--json"]) == 0
    assert any("query_heads" in layer for layer in json.loads(capsys.readouterr().out)["layers"])
    small, _ = seap.load(str(tmp_path / "small"))
    for place, off in ((out, 2e-5), (tmp_path / "less", 1.0)):
        model, _ = seap.load(str(net))
        networks = load_networks(place, model)
        assert any("query_heads" in key for network in networks.values() for key in network.masks)
        runtime = seap.TaskRuntime(model, networks)
        for network in networks:
            with torch.no_grad(), runtime.task(network) as current:
                assert torch.allclose(current(ids()).logits, small(ids()).logits, atol=off), network


def test_experts_are_not_shared_by_low_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, task = folder(tmp_path / "net", "olmoe"), f"words={texts_file(tmp_path / 'words.txt')}"
    words = ["pack", str(net), "--task", task, "--share", "0.3", "--out", str(tmp_path / "tasks")]
    assert main(words) == 1 and "--share doesn't know mixtures of experts" in capsys.readouterr().err
    assert not (tmp_path / "tasks").exists()


def test_masks_are_networks_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, masks = folder(tmp_path / "net", intermediate_size=80), tmp_path / "masks"
    assert main(["mask", str(net), "--method", "magnitude", "--out", str(masks / "small.safetensors")]) == 0
    model, _ = seap.load(str(net))
    runtime = seap.TaskRuntime(model, load_networks(masks, model))
    assert runtime.tasks == ("dense", "small") and runtime.weights_at_work("small") == pytest.approx(0.5, abs=0.01)
    assert unrepaired(runtime.networks) == []
    assert (
        main(["mask", str(net), "--method", "magnitude", "--compensate", "bias", "--out", str(masks / "b.safetensors")])
        == 0
    )
    assert unrepaired(load_networks(masks, seap.load(str(net))[0])) == ["b"]
    other, _ = seap.load(str(folder(tmp_path / "other", intermediate_size=80, seed=3)))
    with pytest.raises(seap.errors.UserError, match="another model"):
        load_networks(masks, other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to pack"),
        (["missing"], "missing doesn't exist"),
        (["dense=net"], "no task can be called dense"),
        (["--task", "arithmetic", "--task", "arithmetic"], "two networks have one name"),
        (["net"], "no seap/mask.safetensors"),
        (["--task", "unknown"], "unknown task"),
    ],
)
def test_what_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("net"))
    assert main(["pack", "net", *words, "--out", "tasks"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("tasks").exists()


def test_what_routing_costs_in_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores on the routed networks are a mix of the networks' own; with every prompt routed right they are equal."""
    net, out = folder(tmp_path / "net", intermediate_size=80), tmp_path / "tasks"
    specs = tasks_files(tmp_path)
    words = [part for spec in specs for part in ("--task", spec)]
    assert main(["pack", str(net), *words, "--method", "seap-paper", "--out", str(out)]) == 0
    router, result = str(tmp_path / "router.safetensors"), tmp_path / "routed.json"
    assert main(["route", "fit", str(net), "--tasks", ",".join(specs), "--out", router, "--num-prompts", "40"]) == 0
    given = ["--tasks", ",".join(specs), "--router", router, "--masks", str(out), "--max-new-tokens", "3"]
    assert main(["route", "eval", str(net), *given, "--metric", "loss", "--out", str(result)]) == 0
    assert "mean" in capsys.readouterr().out
    found = json.loads(result.read_text())
    assert [row["task"] for row in found["rows"]] == ["red", "green", "blue"]
    for row in found["rows"]:
        assert row["measure"] == "loss" and row["n"] == 12 and 0.4 < row["weights"] <= 1
        if row["routed_right"] == 1:
            assert row["routed"] == pytest.approx(row["true_task"], rel=1e-5)
        assert row["dense"] != pytest.approx(row["true_task"], rel=1e-6)
    assert main(["route", "eval", str(net), *given, "--json"]) == 0
    assert {row["measure"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"exact-match"}
    assert main(["route", "eval", str(net), *given, "--fallback", "none"]) == 1
    assert "unknown task 'none'" in capsys.readouterr().err
