"""Whole sub-blocks as a choice beside widths: their damage, the budgets with them, what is refused, the whole way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cut import greedy
from test_curves import measured
from tiny import ids, model
from toy import TEXTS, folder, texts_file, tokenizer

import seap
from seap.errors import UserError
from seap.exports.engines import widths as widths_of
from seap.methods import Drop
from seap.models.arch import Arch, describe
from seap.models.blocks import gone
from seap.models.options import Streaming
from seap.pruning.commands import prune_to_folder
from seap.pruning.stages import calibrate_to_files, mask_to_file
from seap.scoring.score import score_inputs
from seap.selection.allocate import allocate, grid
from seap.selection.budgets import may_go
from seap.selection.curves import closed_curves
from seap.selection.damage import Curve, Curves
from seap.selection.footprint import Footprint
from seap.selection.mask import load_masks
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.selection.timing import TimeCurve, axis_times
from seap.selection.widths import within
from seap.text.options import Calibration


def curves_of(arch: Arch, options: Pruning, cheap: set[str]) -> Curves:
    """Damage that grows with the share that goes; of the cheap axes, the whole sub-block costs next to nothing."""
    found = {}
    for axis in arch.axes:
        kept = sorted(set(grid(axis, options, may_go=may_go(arch, axis, options))))
        scale = 1e-4 if axis.key in cheap else 1 + axis.layer / 10
        found[axis.key] = Curve(tuple(kept), tuple(scale * (1 - width / axis.units) for width in kept))
    return found


def removed(arch: Arch, budgets: dict[str, int]) -> int:
    return sum((axis.units - budgets[axis.key]) * axis.unit_params for axis in arch.axes)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("share", [0.01, 0.04, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["llama", "phi", "gpt2", "qwen2"])
def test_the_target_is_met_within_one_unit_with_what_goes_whole(name: str, share: float, step: int) -> None:
    arch = describe(model(name, num_hidden_layers=4))
    target = share * sum(axis.params for axis in arch.axes) / arch.prunable_params  # without heads that can't be cut
    options = Pruning(sparsity=target, allocate="damage", drop="both", min_channels=4, round_to=step)
    cheap = {axis.key for axis in arch.axes if axis.layer in (1, 3)}
    budgets = allocate(arch, options, score_inputs(arch, None, "random"), curves_of(arch, options, cheap))
    unit = max(axis.unit_params * (step if axis.unit_inputs == 1 else 1) for axis in arch.axes)
    assert abs(removed(arch, budgets) - target * arch.prunable_params) <= unit
    for axis in arch.axes:
        least = 1 if axis.name == "kv_groups" else 4
        assert budgets[axis.key] >= least or (budgets[axis.key] == 0 and may_go(arch, axis, options))
    went = [key for key, count in budgets.items() if count == 0]
    assert went if share > 0.2 else True
    assert set(went) <= cheap or share > 0.6


@pytest.mark.parametrize(
    ("drop", "axes"),
    [("none", set()), ("attention", {"kv_groups"}), ("mlp", {"channels"}), ("both", {"kv_groups", "channels"})],
)
def test_only_what_is_asked_may_go_and_the_first_of_each_kind_of_cache_stays(drop: Drop, axes: set[str]) -> None:
    arch = describe(model("cohere2", num_hidden_layers=5))  # layers 0, 1, 2 and 4 have a sliding window
    options = Pruning(drop=drop)
    found = {(axis.name, axis.layer) for axis in arch.axes if may_go(arch, axis, options)}
    assert {name for name, _ in found} == axes
    assert [layer for name, layer in sorted(found) if name == "kv_groups"] == ([1, 2, 4] if "kv_groups" in axes else [])
    assert sum(name == "channels" for name, _ in found) == (5 if "channels" in axes else 0)


@pytest.mark.parametrize("compensate", ["ridge", "bias", "none"])
def test_the_damage_of_nothing_left_is_that_of_all_that_was_written(compensate: Any) -> None:
    arch, statistics, sensitivity = measured("llama")
    scores = score_inputs(arch, statistics, "obs", sensitivity=sensitivity)
    least = {axis.key: 1 if axis.unit_inputs > 1 else 4 for axis in arch.axes}
    every = {axis.key for axis in arch.axes}
    curves = closed_curves(
        arch, arch.axes, least, 4, scores, statistics, sensitivity, compensate, may_go=every - {"layers.0.channels"}
    )
    assert curves["layers.0.channels"].widths[0] == 4
    for axis in arch.axes[2:]:
        curve, moments = curves[axis.key], statistics[axis.key]
        weight, held = arch.weight(axis.layer, axis.consumer).detach().double(), moments.held
        assert held is not None and curve.widths[0] == 0
        fit = moments.without_held()
        shift = weight @ (held.mean - (0 if compensate == "none" else fit.mean))
        second = weight @ held.covariance @ weight.t() + torch.outer(shift, shift)
        expected = float((sensitivity[axis.key].double() * second).sum()) / 2
        assert curve.damage[0] == pytest.approx(expected, rel=1e-6)


def test_behind_a_norm_nothing_makes_up_for_it() -> None:
    arch, statistics, sensitivity = measured("gemma2")
    scores, every = score_inputs(arch, statistics, "obs", sensitivity=sensitivity), {axis.key for axis in arch.axes}
    least = dict.fromkeys(every, 1)
    with_repair, without = (
        closed_curves(arch, arch.axes, least, 1, scores, statistics, sensitivity, compensate, may_go=every)
        for compensate in ("ridge", "none")
    )
    for axis in arch.axes:
        assert axis.is_normed and with_repair[axis.key].damage[0] == without[axis.key].damage[0]
        assert with_repair[axis.key].damage[1] < without[axis.key].damage[1]


def test_measured_damage_is_the_kl_of_the_model_without(monkeypatch: pytest.MonkeyPatch) -> None:
    arch, statistics, _ = measured("llama")
    options = Pruning(
        allocate="damage", curves="measured", drop="both", min_channels=4, probe_tokens=64, fisher_tokens=64
    )
    ranking = rank(arch.model, {"toy": statistics}, options)
    assert ranking.curves is not None and ranking.judge is not None and ranking.repair_to is not None
    axis = next(axis for axis in arch.axes if axis.key == "layers.2.channels")
    _, repair = ranking.repair_to(axis, 0)
    assert repair is not None
    handle = arch.layers[2].mlp.register_forward_hook(
        lambda *given: (repair.bias + arch.consumer(axis).bias.double()).to(given[2]).expand_as(given[2])
    )
    with torch.no_grad():
        expected = ranking.judge.divergence(0)
    handle.remove()
    curve = ranking.curves[axis.key]
    assert curve.widths[0] == 0 and curve.damage[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("effort", ["quick", "standard"])
@pytest.mark.parametrize(
    ("name", "sparsity"), [("llama", 0.75), ("phi", 0.7), ("gpt2", 0.3), ("gemma2", 0.72), ("mixtral", 0.21)]
)
def test_the_whole_way_beyond_what_units_alone_can_give(name: str, sparsity: float, effort: Any) -> None:
    dense = model(name, num_hidden_layers=4)
    options: dict[str, Any] = {"sparsity": sparsity, "effort": effort, "search_evaluations": 6, "progress": False}
    options |= {"axes": ("kv_groups",)} if name == "mixtral" else {}
    with pytest.raises(UserError, match="can't be met"):
        seap.prune(dense, tokenizer(), task={"toy": TEXTS}, **options)
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, drop="both", **options)
    assert report.realised_sparsity == pytest.approx(sparsity, abs=0.03)
    went = [f"layer {i}" for i, layer in enumerate(report.layers) if 0 in layer.values()]
    assert sorted({text.rpartition(" ")[0] for text in gone(dense.config)}) == went
    assert went
    assert torch.isfinite(dense(ids()).logits).all() and greedy(dense, ids(1, 5)).shape == (1, 11)


def test_a_checkpoint_says_what_went_and_is_pruned_again(tmp_path: Path) -> None:
    dense = str(folder(tmp_path / "dense", num_hidden_layers=4))
    task, quick = f"toy={texts_file(tmp_path / 'toy.txt')}", {"progress": False, "loading": {"device": "cpu"}}
    once = prune_to_folder(dense, tmp_path / "once", tasks=[task], sparsity=0.5, drop="both", effort="quick", **quick)
    assert any(0 in layer.values() for layer in once.layers)
    loaded, _ = seap.load(str(tmp_path / "once"), device="cpu")
    assert "went whole" in (tmp_path / "once" / "README.md").read_text()
    assert widths_of(loaded.config) == [{"kv_groups": 0, "channels": 0} | layer for layer in once.layers]
    twice = prune_to_folder(
        str(tmp_path / "once"), tmp_path / "twice", tasks=[task], sparsity=0.2, min_channels=4, effort="quick", **quick
    )
    again, _ = seap.load(str(tmp_path / "twice"), device="cpu")
    assert set(gone(loaded.config)) == set(gone(again.config)) and twice.params_after < once.params_after


def test_layer_by_layer_it_is_the_same(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense", num_hidden_layers=4)), f"toy={texts_file(tmp_path / 'toy.txt')}"
    found = []
    for streaming in (Streaming(), Streaming(stream=True)):
        out = tmp_path / str(streaming.stream)
        options: dict[str, Any] = {"sparsity": 0.75, "drop": "both", "search_evaluations": 4, "progress": False}
        report = prune_to_folder(dense, out, tasks=[task], streaming=streaming, **options)
        loaded, _ = seap.load(str(out), device="cpu")
        with torch.no_grad():
            found.append((report.layers, gone(loaded.config), loaded(ids()).logits))
    assert found[0][:2] == found[1][:2] and found[0][1]
    assert torch.equal(found[0][2], found[1][2])


def test_masks_of_a_file_do_the_same(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense", num_hidden_layers=4)), f"toy={texts_file(tmp_path / 'toy.txt')}"
    calibrate_to_files(dense, [task], tmp_path / "stats", Calibration(second_moments=True), progress=False)
    stats, mask = tmp_path / "stats" / "toy.safetensors", tmp_path / "mask.safetensors"
    options = Pruning(sparsity=0.5, drop="both", effort="quick")
    mask_to_file(dense, [stats], mask, options, loading={"device": "cpu"})
    kept = load_masks(mask)[0]
    report = prune_to_folder(dense, tmp_path / "out", stats_files=[stats], mask_file=mask, progress=False)
    assert [key for key in kept if not kept[key].any()]
    assert all(torch.equal(report.masks[key], kept[key]) for key in kept)
    loaded, _ = seap.load(str(tmp_path / "out"), device="cpu")
    assert len(gone(loaded.config)) == sum(not own.any() for own in kept.values())


def test_time_counts_what_a_sub_block_takes_beside_its_linears() -> None:
    """Two attentions of one time; dropping one saves what stands beside its linears too."""
    arch = describe(model("llama"))
    first, second = (axis for axis in arch.axes[:4] if axis.name == "kv_groups")
    curves = {axis.key: Curve((0, 1, 4), (3.0, 2.0, 0.0)) for axis in (first, second)}
    times = {
        first.key: TimeCurve((1, 4), (1.0, 4.0), beside=6.0),
        second.key: TimeCurve((1, 4), (1.0, 4.0)),
    }
    assert times[first.key].at([4, 1, 0]) == [10.0, 7.0, 0.0]
    choices = [[(axis, width) for width in (4, 1, 0)] for axis in (first, second)]
    whole = Footprint("milliseconds", 14.0, 0.0, 0.0, times)
    assert within(choices, curves, whole, 7.0) == {first.key: 0, second.key: 4}
    found = axis_times(arch, arch.axes)
    assert found[first.key].beside >= 0


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("llama", {"method": "flap"}, "--allocate adaptive doesn't measure"),
        ("llama", {"allocate": "one-width"}, "--allocate one-width doesn't measure"),
        ("opt", {"drop": "attention"}, "of opt can go whole: its heads can't be cut"),
        ("gpt2", {"drop": "attention"}, "of gpt2 can go whole: its heads can't be cut"),
        ("llama", {"drop": "attention", "axes": ("channels",)}, "only channels are cut"),
        ("mixtral", {"drop": "mlp"}, "keeps its experts"),
    ],
)
def test_what_can_not_go_whole_is_refused(name: str, options: dict[str, Any], reason: str) -> None:
    dense = model(name)
    with pytest.raises(UserError, match=reason):
        seap.prune(dense, tokenizer(), task={"toy": TEXTS}, progress=False, **({"drop": "both"} | options))


def test_serving_and_exports_refuse_it(tmp_path: Path) -> None:
    from seap.exports.export import export
    from seap.pruning.surgery import cut_

    dense: Any = model("llama")
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in describe(dense).axes}
    masks["layers.1.channels"][:] = False
    with pytest.raises(UserError, match="prune without --drop"):
        seap.TaskRuntime(dense, {"toy": masks})
    cut_(dense, masks)
    dense.save_pretrained(tmp_path / "cut")
    tokenizer().save_pretrained(tmp_path / "cut")
    for target in ("gguf", "openvino", "padded", "uniform"):
        with pytest.raises(UserError, match=r"layers without mlp \(layer 1 mlp\)|needs|extra"):
            export(str(tmp_path / "cut"), tmp_path / ("out.gguf" if target == "gguf" else target), target)
