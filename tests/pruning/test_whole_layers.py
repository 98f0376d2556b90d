"""Whole layers taken out: for every family a stock checkpoint with fewer, which says what the layers left say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALL, READ_TOKENS, ids, model
from toy import TEXTS, folder, texts_file, tokenizer
from transformers import AutoModelForCausalLM

import seap
from seap.activations.handed import handed_on, stubbed
from seap.cli.main import main
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.blocks import gone
from seap.pruning.surgery import cut_
from seap.scoring.influence import block_influence
from seap.selection.allocate import allocate
from seap.selection.mask import choose_units, load_masks, realised_sparsity
from seap.selection.options import Pruning
from seap.selection.whole_layers import dropped_layers, with_blocks

SHORT: dict[str, Any] = {"method": "shortgpt", "progress": False}


def without(dense: Any, dropped: set[int]) -> dict[str, torch.Tensor]:
    axes = describe(dense).axes
    return with_blocks({axis.key: torch.full((axis.entries,), axis.layer not in dropped) for axis in axes})


# whose layers follow from their number (of layers, of the layer)
BY_NUMBER = {"minicpm3", "recurrent_gemma", "bamba"}
NOT_THESE = {"gemma4_text", "nemotron_h-dense"}  # sizes by type; a layer of these with nothing that can be cut


@pytest.mark.parametrize("name", sorted(READ_TOKENS))
def test_layers_that_read_what_is_theirs_by_number_stay(name: str) -> None:
    with pytest.raises(UserError, match="read what is theirs by their number"):
        cut_(model(name), without(model(name), {2}))


@pytest.mark.parametrize("name", sorted(BY_NUMBER & ALL.keys()))
def test_layers_that_follow_from_their_number_stay(name: str) -> None:
    dense = model(name, num_hidden_layers=5)
    with pytest.raises(UserError, match="can't become layer"):
        cut_(dense, without(dense, {1, 3}))


@pytest.mark.parametrize("name", sorted(ALL.keys() - BY_NUMBER - NOT_THESE - READ_TOKENS))
def test_what_is_left_says_what_it_would_with_the_layers_passed_over(name: str, tmp_path: Path) -> None:
    dense = model(name, num_hidden_layers=5)
    arch, tokens = describe(dense), ids(tokens=10)
    stubs = dict.fromkeys((1, 3), lambda hidden, *args, **kwargs: handed_on(arch, hidden))
    with torch.no_grad(), stubbed(arch.layers, stubs):
        expected = dense(tokens, use_cache=False).logits
    masks = without(dense, {1, 3})
    gone = sum(arch.layer_params(layer) for layer in (1, 3)) / arch.prunable_params
    assert realised_sparsity(arch, masks) == pytest.approx(gone)
    cut_(dense, masks)
    assert dense.config.num_hidden_layers == len(describe(dense).layers) == 3
    with torch.no_grad():
        assert torch.equal(dense(tokens, use_cache=False).logits, expected)
        grown = dense.generate(tokens, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        again = dense(grown[:, :-1], use_cache=False).logits[:, 9:].argmax(-1)
    assert torch.equal(grown[:, 10:], again)  # with the cache as without
    dense.save_pretrained(tmp_path / "short")
    assert "seap" not in json.loads((tmp_path / "short" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "short").eval()
    assert type(loaded) is type(model(name))
    with torch.no_grad():
        assert torch.equal(loaded(tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize(("sparsity", "layers"), [(0.2, 1), (0.21, 2), (0.4, 2), (0.5, 3), (0.0, 0)])
def test_as_few_layers_go_as_are_not_below_the_target(sparsity: float, layers: int) -> None:
    arch = describe(model("llama", num_hidden_layers=5))
    scores = {axis.key: torch.full((axis.num_inputs,), float((axis.layer + 2) % 5)).double() for axis in arch.axes}
    options = Pruning(method="shortgpt", sparsity=sparsity)
    masks = with_blocks(choose_units(arch.axes, scores, allocate(arch, options, scores)))
    # the lowest go: layers 3, 4, 0 score 0, 1, 2 an input
    assert dropped_layers(masks) == set([3, 4, 0][:layers])
    assert realised_sparsity(arch, masks) == pytest.approx(layers / 5)


def test_shortgpt_takes_out_the_layers_of_least_influence() -> None:
    dense: Any = model("llama", num_hidden_layers=5)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            linear = dense.model.layers[2].get_submodule(name)
            linear.weight.mul_(1e-3)
            linear.bias.mul_(1e-3)
    left = [dense.model.layers[place] for place in (0, 1, 3, 4)]
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.15, **SHORT)
    assert list(dense.model.layers) == left
    assert report.layers[2] == {"kv_groups": 0, "channels": 0} and report.realised_sparsity == pytest.approx(0.2)
    assert report.target_sparsity == 0.15 and any("whole layers went: 0.2000" in note for note in report.notes)


def test_of_several_tasks_it_is_the_influence_on_all_their_text() -> None:
    tasks = {"first": TEXTS[:20], "second": TEXTS[20:]}
    dense = model("llama", num_hidden_layers=5)
    statistics = seap.calibrate(dense, tokenizer(), tasks, progress=False)
    rows = tuple(row for part in statistics.values() for row in part.rows)
    found = block_influence(describe(dense), rows, batch_tokens=4096)
    given: dict[str, Any] = {"method": "shortgpt", "mask": "general", "weights": {"first": 9.0}, "min_channels": 4}
    report = seap.prune(dense, tokenizer(), statistics=statistics, sparsity=0.4, progress=False, **given)
    expected = sorted(range(5), key=lambda layer: found[layer])[:2]
    assert dropped_layers(report.masks) == set(expected)
    for name in ("--weights", "--min-channels"):
        assert f"{name} has no effect with these choices" in report.notes


def test_the_folder_is_stock_and_says_what_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, task = folder(tmp_path / "dense", num_hidden_layers=4), texts_file(tmp_path / "t.txt")
    small = tmp_path / "small"
    words = ["prune", str(dense), "--task", f"t={task}", "--method", "shortgpt", "--sparsity", "0.5", "--device", "cpu"]
    assert main([*words, "--out", str(small), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["realised_sparsity"] == pytest.approx(0.5)
    assert not (small / "modeling_seap.py").exists()
    assert "stock `LlamaForCausalLM`" in (small / "README.md").read_text()
    loaded, _ = seap.load(str(small), device="cpu")
    assert len(loaded.model.layers) == 2
    assert len(dropped_layers(load_masks(small / "seap" / "mask.safetensors")[0])) == 2
    assert main(["inspect", str(small), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [layer["channels"] for layer in layers].count(0) == 2
    # its mask, in a file of its own, makes the same folder again
    stats, mask = tmp_path / "stats", tmp_path / "mask.safetensors"
    assert main(["calibrate", str(dense), "--task", f"t={task}", "--out", str(stats), "--device", "cpu"]) == 0
    words = ["mask", str(dense), str(stats / "t.safetensors"), "--method", "shortgpt", "--out", str(mask)]
    assert main([*words, "--sparsity", "0.5", "--device", "cpu"]) == 0
    words = ["prune", str(dense), "--mask-file", str(mask), "--out", str(tmp_path / "again"), "--device", "cpu"]
    assert main(words) == 0
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "again")]
    assert same[0] == same[1]


def test_what_whole_layers_do_not_go_with() -> None:
    for changes, message in (
        ({"compensate": "ridge"}, "leaves no part of a layer"),
        ({"axes": ("channels",)}, "cuts no axes"),
        ({"allocate": "uniform"}, "block-influence is of whole layers"),
    ):
        with pytest.raises(UserError, match=message):
            Pruning(method="shortgpt", **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"can't be met by whole layers: at most 0\.667"):
        seap.prune(model("llama"), tokenizer(), task={"toy": TEXTS}, sparsity=0.9, **SHORT)
    with pytest.raises(UserError, match="doesn't know mixtures of experts"):
        seap.prune(model("mixtral"), tokenizer(), task={"toy": TEXTS}, **SHORT)
    with pytest.raises(UserError, match="--method modegpt-mlp doesn't know mixtures of experts such as qwen2_moe"):
        seap.prune(model("qwen2_moe"), tokenizer(), task={"toy": TEXTS}, method="modegpt-mlp", progress=False)
    pruned = model("llama")
    seap.prune(pruned, tokenizer(), task={"toy": TEXTS}, method="flap", min_channels=4, progress=False)
    with pytest.raises(UserError, match="takes layers out of dense models, and this one is pruned already"):
        seap.prune(pruned, tokenizer(), task={"toy": TEXTS}, **SHORT)


def test_a_layer_that_comes_from_its_number_is_refused_and_the_model_stays() -> None:
    dense: Any = model("gpt2", scale_attn_by_inverse_layer_idx=True)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    with pytest.raises(UserError, match=r"layer 1 can't become layer 0 of a stock gpt2: its attn\.scaling"):
        cut_(dense, without(dense, {0}))
    assert dense.config.num_hidden_layers == 3
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_masks_that_do_not_fit_are_refused() -> None:
    dense = model("llama")
    with pytest.raises(UserError, match="at least 1 must remain"):
        cut_(dense, without(dense, {0, 1, 2}))
    masks = without(dense, {0})
    masks["layers.1.channels"][0] = False
    with pytest.raises(UserError, match="can't also cut others"):
        cut_(dense, masks)
    experts = model("mixtral")
    masks = without(experts, {0})
    del masks["layers.0.block"]
    with pytest.raises(UserError, match="keeps 0 of"):
        cut_(experts, masks)


def test_a_mask_that_does_not_name_the_layer_takes_its_two_sub_blocks() -> None:
    dense = model("llama")
    masks = without(dense, {0})
    del masks["layers.0.block"]
    cut_(dense, masks)
    assert len(describe(dense).layers) == 3 and gone(dense.config) == ["layer 0 attention", "layer 0 mlp"]


def test_a_server_of_many_tasks_has_no_place_for_fewer_layers(tmp_path: Path) -> None:
    dense, task = folder(tmp_path / "dense"), texts_file(tmp_path / "t.txt")
    from seap.serving.networks.packing import pack_to_files

    with pytest.raises(UserError, match="none can have fewer of them"):
        pack_to_files(str(dense), tmp_path / "packed", tasks=[f"t={task}"], method="shortgpt", progress=False)
