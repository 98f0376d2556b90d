"""Corrections of low rank: the best ones for what they cost, within a share, and run as what they stand for."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import greedy, logits, pruned, random_masks, random_repairs
from tiny import ALL, ids, model
from toy import folder, texts_file

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.models.arch import describe
from seap.serving.networks.network import Network, load_network, network_between, save_network, weight_key
from seap.serving.networks.sharing import ranks_within, share_weights

OPTIONS: dict[str, Any] = {"batch_tokens": 64, "progress": False}
ROWS = [tuple(row) for row in ids(rows=12, tokens=14).tolist()]


def rebuilt(net: Any, seed: int = 2) -> tuple[Any, Network]:
    """A pruned model with weights of its own in layer 1, and its network."""
    masks = random_masks(net, seed)
    small = pruned(net, masks, random_repairs(net, masks, seed + 1))
    return small, network_between(net, small, masks)


def test_ranks_by_hand() -> None:
    """Worth per parameter is 4, 2, 1, ½, ¼ (a, 2 parameters a rank) and 3, 1, 1, 1, 1 (b, 3 parameters a rank).

    So the order is a b a a b b b b a a, and what is spent after each 2 5 7 9 12 15 18 21 23 25.
    """
    worth = [torch.tensor([8.0, 4, 2, 1, 0.5]), torch.tensor([9.0, 3, 3, 3, 3])]
    assert ranks_within(worth, [2, 3], 23) == [4, 5]
    assert ranks_within(worth, [2, 3], 20) == [0, 5]  # a's 3 are too few to be worth its calls
    assert ranks_within(worth, [2, 3], 5) == [0, 0]


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("min_slice_bytes", [1 << 20, 0])
def test_a_shared_network_runs_as_what_it_stands_for(name: str, min_slice_bytes: int, tmp_path: Path) -> None:
    """Its outputs are those of the pruned model whose weights are the kept dense ones plus L · R."""
    net = model(name)
    small, network = rebuilt(net)
    share = 0.4 * network.num_own / sum(p.numel() for p in net.parameters())
    shared = share_weights(net, small, network, ROWS, share=share, **OPTIONS)
    assert shared.left and not shared.weights and shared.num_own <= share * sum(p.numel() for p in net.parameters())
    expected = pruned(net, network.masks)
    for axis in describe(net).axes:
        for part in axis.slices:
            linear, key = describe(expected).linear(axis.layer, part.module), weight_key(axis, part)
            if key in shared.left:
                with torch.no_grad():
                    describe(expected).weight(axis.layer, part.module).add_(shared.left[key] @ shared.right[key])
            if part.consumer and axis.key in shared.biases:
                linear.bias = torch.nn.Parameter(shared.biases[axis.key].clone())
    save_network(tmp_path / "one.safetensors", shared, {"task": "one"})
    others = {"two": random_masks(net, 8), "three": random_masks(net, 9), "four": random_masks(net, 10)}
    read = load_network(tmp_path / "one.safetensors")
    runtime = seap.TaskRuntime(net, {"one": read, **others}, min_slice_bytes=min_slice_bytes)
    with runtime.task("one") as current:
        assert torch.allclose(logits(current, ids()), logits(expected, ids()), atol=2e-5)
        assert torch.equal(greedy(current, ids()), greedy(expected, ids()))
    with runtime.task("two") as current:
        assert torch.allclose(logits(current, ids()), logits(pruned(model(name), others["two"]), ids()), atol=2e-5)


def test_more_of_its_own_is_closer() -> None:
    """Likeness to the network on the text grows with the share, and a share that holds it all changes nothing."""
    net = model("llama")
    small, network = rebuilt(net)
    whole = network.num_own / sum(p.numel() for p in net.parameters())
    wanted = logits(small, torch.tensor(ROWS)).log_softmax(-1)
    far = []
    for share in (0.25 * whole, 0.5 * whole, 0.8 * whole):
        shared = share_weights(net, small, network, ROWS, share=share, **OPTIONS)
        with seap.TaskRuntime(copy.deepcopy(net), {"one": shared}).task("one") as current:
            found = logits(current, torch.tensor(ROWS)).log_softmax(-1)
        far.append(float((wanted.exp() * (wanted - found)).sum(-1).mean()))
    assert far[0] > far[1] > far[2] > 0
    assert share_weights(net, small, network, ROWS, share=1.0, **OPTIONS) is network
    with pytest.raises(UserError, match="biases alone are more"):
        share_weights(net, small, network, ROWS, share=1e-6, **OPTIONS)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task, a pruned folder and a mask, each within its share; a folder needs the statistics for their text."""
    net, out, stats = folder(tmp_path / "net", intermediate_size=80), tmp_path / "tasks", tmp_path / "stats"
    task, quick = f"words={texts_file(tmp_path / 'words.txt')}", ["--search-evaluations", "2"]
    assert main(["prune", str(net), "--task", task, "--out", str(tmp_path / "small"), *quick]) == 0
    assert main(["calibrate", str(net), "--task", task, "--second-moments", "--out", str(stats)]) == 0
    pack = ["pack", str(net), str(tmp_path / "small"), "--out", str(out), "--share", "0.1"]
    assert main(pack) == 1
    assert "--share needs the text of words" in capsys.readouterr().err and not out.exists()
    assert main([*pack, "--stats", str(stats / "words.safetensors"), "--task", task, *quick, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["files"]
    assert [about["task"] for about in made] == ["small", "words"]
    assert all(0.02 < about["own_share"] <= 0.1 for about in made)
    assert main(["inspect", str(out / "words.safetensors")]) == 0 and "corrected" in capsys.readouterr().out
    assert main([*pack[:-1], "0"]) == 1 and "--share 0.0: must be above 0" in capsys.readouterr().err
