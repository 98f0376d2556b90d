"""Pruning by several processes, or a model on several devices, gives what one process gives in one memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import launch, launch_alone
from test_streaming import weights
from tiny import model
from toy import TEXTS, folder, texts_file, tokenizer

import seap
from seap.activations.layerwise import Walk
from seap.activations.ranks import Ranks
from seap.cli.main import main
from seap.compensation.cross import CrossMoments, over
from seap.models.arch import describe
from seap.models.modes import evaluation
from seap.pruning import checkpoint
from seap.pruning.ready import check_together
from seap.selection.options import Pruning

NEAR = {"rtol": 1e-3, "atol": 1e-4}  # float32 rounding of batches of another shape, through the solves of the refit
WORDS = ["--sparsity", "0.3", "--min-channels", "4", "--search-evaluations", "6", "--device", "cpu"]


def assert_near(one: Path, other: Path) -> None:
    """The same masks, and weights up to rounding."""
    masks = [checkpoint.load_masks(path / "seap" / "mask.safetensors")[0] for path in (one, other)]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][key], masks[1][key]) for key in masks[0])
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **NEAR, msg=lambda text, name=name: f"{name}: {text}")
    told = [json.loads((path / "seap.json").read_text()) for path in (one, other)]
    assert told[0]["num_tokens"] == told[1]["num_tokens"] and told[0]["layers"] == told[1]["layers"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "more"), [(2, []), (3, ["--stream"])])
def test_processes_prune_together_as_one_does_alone(size: int, more: list[str], tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    words = ["prune", dense, "--task", task, *WORDS]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = launch([*words, *more, "--out", "other"], tmp_path, size=size)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved") == 1  # rank 0 alone speaks
    assert_near(tmp_path / "one", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "one", "other", "toy.txt"]


@pytest.mark.slow
def test_actors_prune_together_as_one_process_does_alone(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    words = ["prune", dense, "--task", task, *WORDS]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = launch_alone([*words, "--out", "other", "--ray", "2"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert_near(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_row_is_one_ranks(size: int) -> None:
    arch = describe(model("llama"))
    rows = [tuple(range(3, 5 + i % 9)) for i in range(40)]
    with evaluation(arch.model):
        walks = [Walk.start(arch, rows, batch_tokens=100, ranks=Ranks(rank, size)) for rank in range(size)]
    found = [
        (held, tuple(ids[mask].tolist()))
        for walk in walks
        for batch, held in zip(walk.batches, walk.held, strict=True)
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]
    assert sorted(found) == sorted((i % 5 == 4, row) for i, row in enumerate(rows))
    assert all(walk.batches for walk in walks)  # nobody is idle where there is enough


def test_alone_sums_are_what_they_are() -> None:
    sums = CrossMoments()
    assert over(sums, Ranks()) is sums


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix": "auto"}, "--mix auto"),
        ({"method": "seap-all", "worst_task": True}, "--worst-task"),
        ({"method": "gisp"}, "--allocate iterative"),
        ({"method": "wanda-sp-sequential"}, "--method wanda-sp-sequential"),
    ],
)
def test_what_one_process_chooses_is_refused_to_several(changes: dict[str, Any], said: str) -> None:
    check_together(Pruning(**changes), Ranks())
    with pytest.raises(seap.errors.UserError, match=f"{said} is chosen by one process"):
        check_together(Pruning(**changes), Ranks(0, 2))


@pytest.mark.parametrize(
    ("words", "ranks", "said"),
    [
        ("--max-loss 1%", "2", "a promise is kept by one process"),
        ("--ray 2", "2", "run it without torchrun"),
        ("--ray 0", "1", "--ray 0: must be at least 1"),
        ("--ray 2 --max-loss 1%", "1", "a promise is kept by one process"),
    ],
)
def test_what_does_not_go_together_is_said(
    words: str,
    ranks: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", ranks)
    task = f"toy={texts_file(tmp_path / 'toy.txt', TEXTS * 4)}"
    assert main(["prune", "builtin", "--task", task, "--out", str(tmp_path / "o"), *words.split()]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def dispatched(name: str, places: list[Any]) -> Any:
    """A tiny model whose layers lie on these devices in turn, as transformers' device_map puts them."""
    accelerate = pytest.importorskip("accelerate", reason='needs pip install "seap[gguf]"')
    net: Any = model(name).eval()
    inside = describe(net).family.layers
    device_map = {f"{inside}.{i}": places[i % len(places)] for i in range(3)}
    for path, module in net.named_modules():
        above = [key for key in (inside, *device_map) if key == path or key.startswith(f"{path}.") or path == ""]
        if not above and not any(path.startswith(f"{key}.") for key in device_map) and list(module.parameters()):
            device_map[path] = places[0]
    return accelerate.dispatch_model(net, device_map=device_map, main_device=places[0], force_hooks=True)


def cut_in_memory(net: Any) -> dict[str, torch.Tensor]:
    """A tiny model pruned by the default method where it lies; its weights on the CPU."""
    seap.prune(
        net, tokenizer(), task={"toy": TEXTS}, sparsity=0.3, min_channels=4, search_evaluations=5, progress=False
    )
    assert net(torch.arange(3, 15).unsqueeze(0)).logits.isfinite().all()
    return {key: value.cpu() for key, value in net.state_dict().items()}


def hooked(net: Any) -> set[str]:
    """The modules that accelerate calls in its own way."""
    return {path for path, module in net.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text", "gpt_neox", "opt"])
def test_a_model_that_accelerate_dispatched_is_pruned_where_it_lies(name: str) -> None:
    expected, net = cut_in_memory(model(name)), dispatched(name, ["cpu"])
    wrapped = {path for path, module in net.named_modules() if "forward" in vars(module)}
    assert len(wrapped) > 3
    found = cut_in_memory(net)
    assert {
        path for path, module in net.named_modules() if "forward" in vars(module)
    } >= wrapped  # hooks are still there
    assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neox"])
def test_layers_on_two_devices_are_pruned_as_on_one(name: str) -> None:
    expected, found = cut_in_memory(model(name)), cut_in_memory(dispatched(name, ["cpu", 0]))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3)
