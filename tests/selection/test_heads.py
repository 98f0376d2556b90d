"""Query heads as a choice beside whole KV groups: scores, damage, slopes, the budgets with them, the whole way."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import greedy
from test_curves import explicit, rows_of, squared
from tiny import ids, model
from toy import TEXTS, folder, texts_file, tokenizer

import seap
from seap.activations.calibration import calibrate
from seap.activations.moments import Moments
from seap.compensation.compensate import kept_inputs, ridge
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import KV_GROUPS, Axis
from seap.models.modes import evaluation
from seap.models.options import Streaming
from seap.page.describe import describe as inspected
from seap.pruning.commands import prune_to_folder
from seap.pruning.stages import calibrate_to_files, mask_to_file
from seap.scoring.score import score_inputs, unit_scores
from seap.selection.allocate import allocate, by_head, grid
from seap.selection.blocks import blocks_of
from seap.selection.budgets import variants
from seap.selection.curves import closed_widths, damage_at
from seap.selection.damage import Curve, Curves
from seap.selection.footprint import footprint_of
from seap.selection.mask import choose_units, load_masks, removed_params, unit_places
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.selection.search import divergence_of, movable, moved
from seap.selection.widths import within
from seap.text.corpus import Corpus
from seap.text.options import Calibration

FOUR = {"num_key_value_heads": 2}  # KV groups, of 4 query heads each
ROWS = [torch.randint(5, 60, (24,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(40)]


def groups_of(arch: Arch) -> list[Axis]:
    return [axis for axis in arch.axes if axis.name == KV_GROUPS]


def curves_of(arch: Arch, options: Pruning, cheap: set[int] = frozenset()) -> Curves:  # type: ignore[assignment]
    """Damage that grows with the share of parameters that goes; next to nothing in the heads of the cheap layers."""
    found = {}
    for axis in (own for each in arch.axes for own in variants(each, options)):
        kept = sorted(set(grid(axis, options)))
        scale = 1e-4 if axis.layer in cheap and axis.name == KV_GROUPS else 1 + axis.layer / 10
        share = axis.unit_params / axis.whole_params
        found[axis.curve_key] = Curve(tuple(kept), tuple(scale * (1 - width * share) for width in kept))
    return found


def ranked(**changes: Any) -> Ranking:
    net = model("llama", **FOUR)
    statistics = calibrate(net, Corpus("a", ROWS, "hash"), Calibration(second_moments=True), progress=False)
    options = {"sparsity": 0.4, "min_channels": 1, "probe_tokens": 192, "fisher_tokens": 512, "heads": "query"}
    return rank(net, {"a": statistics}, Pruning(**(options | changes)))


@pytest.mark.parametrize("name", ["obs", "obs-fisher", "random", "wifv", "wanda"])
def test_scores_of_groups_are_as_without_and_those_of_heads_are_their_own(name: Any) -> None:
    arch = describe(model("llama", **FOUR))
    statistics = calibrate(arch.model, Corpus("a", ROWS, "h"), Calibration(second_moments=True), progress=False)
    given: dict[str, Any] = {"sensitivity": {axis.key: torch.eye(24) for axis in arch.axes}}
    plain, fine = (score_inputs(arch, statistics, name, by_head=by_head, **given) for by_head in (False, True))
    for axis in arch.axes:
        torch.testing.assert_close(unit_scores(axis, fine[axis.key]), unit_scores(axis, plain[axis.key]))
        if axis.name != KV_GROUPS:
            assert torch.equal(fine[axis.key], plain[axis.key])
            continue
        heads = unit_scores(axis.each_head(), fine[axis.key])
        assert len(set(heads.tolist())) == 8
        if name.startswith("obs"):
            alone = replace(axis, units=8, unit_inputs=8, queries=1, heads=1)
            own = score_inputs(arch, statistics, name, axes=[alone], **given)[axis.key]
            own = unit_scores(alone, own).view(2, 4)
            assert torch.equal(own.argsort(1), heads.view(2, 4).argsort(1))


def test_the_best_heads_of_the_best_groups_stay() -> None:
    """Groups sum to 10, 26 and 18, of which two stay, with their two best heads; among equals the first."""
    axis = replace(groups_of(describe(model("llama", **FOUR)))[0], units=3)
    heads = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 3, 3, 3]], dtype=torch.float64)
    scores = {axis.key: heads.flatten().repeat_interleave(axis.unit_inputs // 4)}
    masks = choose_units([axis], scores, {axis.key: 2, axis.heads_key: 2})
    assert masks[axis.key].tolist() == [False, True, True]
    assert masks[axis.heads_key].view(3, 4).int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    assert choose_units([axis], scores, {axis.key: 2, axis.heads_key: 4}).keys() == {axis.key}
    assert unit_places(axis.with_heads(1), scores).tolist() == [[3, 3, 3, 2, 3, 3, 3, 0, 1, 3, 3, 3]]


@pytest.mark.parametrize("compensate", ["ridge", "none"])
def test_damage_in_closed_form_is_the_mean_over_held_out_rows(compensate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.selection.blocks.UNTESTED_DAMPING", 1e-9)  # whose scale differs
    whole = replace(groups_of(describe(model("llama", **FOUR)))[0], unit_inputs=8)  # heads of 2 inputs
    fit, held, draw = rows_of(80, 16), rows_of(30, 16), torch.Generator().manual_seed(2)
    weight, information = torch.randn(5, 16, generator=draw, dtype=torch.float64), squared(rows_of(20, 5))
    scores = {whole.key: torch.rand(8, generator=draw, dtype=torch.float64).repeat_interleave(2)}
    moments = Moments.of(fit, second=True)
    moments.add_(apart := Moments.of(held, second=True))
    moments.held = apart
    for axis in variants(whole, Pruning(heads="query")):
        widths = closed_widths(axis, 1, 1)
        assert widths == ([1] if axis.heads == 4 else [1, 2])
        blocks = blocks_of(axis, weight, {axis.key: moments}, unit_places(axis, scores), compensate)
        found = damage_at(blocks, information, widths, has_bias=compensate != "none")
        for width, damage in zip(widths, found, strict=True):
            masks = choose_units([axis], scores, {axis.key: width})
            keep = kept_inputs(axis, axis.mask_of(masks))
            assert int(keep.sum()) == width * axis.heads * 2
            repair = ridge(weight, Moments.of(fit, second=True), keep, 1e-9) if compensate == "ridge" else None
            assert damage == pytest.approx(explicit(weight, held, keep, repair, information), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("share", [0.003, 0.02, 0.1, 0.3, 0.6, 0.8])
@pytest.mark.parametrize(("name", "axes"), [("llama", None), ("qwen2", None), ("phi3", ("kv_groups",))])
def test_the_target_is_met_within_one_unit_with_heads(name: str, axes: Any, share: float, step: int) -> None:
    arch = describe(model(name, num_hidden_layers=4, **FOUR))
    cut = sum(axis.params for axis in arch.axes if axis.name in (axes or (axis.name,))) / arch.prunable_params
    options = Pruning(sparsity=share * cut, allocate="damage", heads="query", min_channels=4, round_to=step, axes=axes)
    scores = score_inputs(arch, None, "random", by_head=True)
    budgets = allocate(arch, options, scores, curves_of(arch, options, {1, 3}))
    masks = choose_units(arch.axes, scores, budgets)
    unit = max(a.unit_params * (step if a.unit_inputs == 1 else 1) for a in arch.axes if a.name in (axes or (a.name,)))
    assert abs(removed_params(arch.axes, masks) - options.sparsity * arch.prunable_params) <= unit
    found = {axis.layer: budgets[axis.heads_key] for axis in groups_of(arch)}
    assert min(found.values()) >= 1 and max(found.values()) <= 4
    if share == 0.1 and axes is None:
        assert min(found.values()) < 4 and {layer for layer, heads in found.items() if heads < 4} <= {1, 3}


def test_beyond_what_groups_can_give_heads_can() -> None:
    arch = describe(model("gemma3_text", num_key_value_heads=1))
    groups = sum(axis.params for axis in groups_of(arch)) / arch.prunable_params
    options = Pruning(sparsity=0.5 * groups, allocate="damage", heads="query", axes=("kv_groups",))
    scores = score_inputs(arch, None, "random", by_head=True)
    with pytest.raises(UserError, match="can't be met"):
        allocate(arch, replace(options, heads="groups"), scores)
    budgets = allocate(arch, options, scores, curves_of(arch, options))
    assert {budgets[axis.key] for axis in groups_of(arch)} == {1}
    more = removed_params(arch.axes, choose_units(arch.axes, scores, budgets)) - options.sparsity * arch.prunable_params
    assert 0 <= more < max(axis.head_params for axis in groups_of(arch))
    with pytest.raises(UserError, match="can't be met"):
        allocate(arch, replace(options, sparsity=0.95 * groups), scores)


def test_measured_damage_is_the_kl_of_the_model_without() -> None:
    found = ranked(allocate="damage", curves="measured")
    assert found.judge is not None and found.curves is not None and found.repair_to is not None
    axis = groups_of(found.arch)[1]
    expected = {own.curve_key for own in variants(axis, found.options)}
    assert {key for key in found.curves if key.startswith(axis.key)} == expected
    with evaluation(found.arch.model):
        for heads, groups in ((3, 2), (1, 1), (4, 1)):
            curve = found.curves[axis.with_heads(heads).curve_key]
            budgets = {a.key: a.units for a in found.arch.axes} | {axis.key: groups, axis.heads_key: heads}
            kl = divergence_of(found.judge, found.arch.axes, budgets, found.repair_to)
            assert curve.damage[curve.widths.index(groups)] == pytest.approx(kl, rel=1e-4)


def test_a_slope_says_how_kl_changes_with_groups_and_heads() -> None:
    found = ranked()
    repair_to, axes, slopes = found.repair_to, found.free, found.slopes
    assert repair_to is not None and slopes is not None
    heads = {axis.heads_key: 2 for axis in groups_of(found.arch)}
    budgets = {axis.key: max(axis.units // 2, 1) for axis in axes} | heads
    with evaluation(found.arch.model):
        here = divergence_of(slopes.judge, axes, budgets, repair_to)
        told = slopes.at(budgets, found.least, repair_to)
        predicted, measured = [], []
        for axis in groups_of(found.arch):
            [at_hand] = told[axis.with_heads(2).curve_key].at([1])
            assert at_hand == pytest.approx(0, abs=1e-12)
            for own in variants(axis, found.options):
                for width in (1, 2):
                    predicted += told[own.curve_key].at([width])
                    changed = budgets | {axis.key: width, axis.heads_key: own.heads}
                    measured.append(divergence_of(slopes.judge, axes, changed, repair_to) - here)
    assert torch.corrcoef(torch.tensor([predicted, measured]))[0, 1] > 0.85


def test_moves_take_heads_of_all_groups_of_a_layer() -> None:
    arch = describe(model("llama", **FOUR))
    axis, channels = groups_of(arch)[0], arch.axes[1]
    budgets = {a.key: a.units for a in arch.axes} | {a.heads_key: a.queries for a in groups_of(arch)}
    budgets[channels.key] = 8
    handles = movable(arch.axes, budgets)
    heads = handles[axis.heads_key]
    assert heads.key == axis.heads_key and heads.unit_params == 2 * axis.head_params and heads.units == 4
    least = dict.fromkeys(handles, 1)
    after = moved(budgets, heads, handles[channels.key], heads.unit_params, least, 1)
    assert after is not None and after[axis.heads_key] == 3 and after[axis.key] == 2
    assert abs((after[channels.key] - 8) * channels.unit_params - heads.unit_params) <= channels.unit_params / 2
    assert movable(arch.axes, after)[axis.key].unit_params == axis.unit_params - axis.head_params


def test_memory_is_met_at_the_least_damage_over_groups_and_heads() -> None:
    """Beside every choice of widths and heads of a tiny model, one by one."""
    net = model("llama", **FOUR, num_hidden_layers=2)
    options = Pruning(cost="memory", context=64, heads="query", allocate="damage", min_channels=20, sparsity=0.3)
    arch, footprint = describe(net), footprint_of(net, options)
    curves = curves_of(arch, options, cheap={1})
    free = [axis for axis in arch.axes if axis.name == KV_GROUPS]
    choices = [by_head(axis, grid(axis, options), options) for axis in free]
    whole, least = footprint.of({}), footprint.of({key: 1 for a in free for key in (a.key, a.heads_key)})

    def said(chosen: Sequence[tuple[Axis, int]]) -> dict[str, int]:
        return {axis.key: width for axis, width in chosen} | {axis.heads_key: axis.heads for axis, _ in chosen}

    def damage(budgets: dict[str, int]) -> float:
        shaped = [axis.shaped(budgets) for axis in free]
        return sum(curves[axis.curve_key].at([budgets[axis.key]])[0] for axis in shaped)

    everything, seen = [said(chosen) for chosen in itertools.product(*choices)], set()
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        most = whole - share * (whole - least)
        found = within(choices, curves, footprint, most)
        assert footprint.of(found) <= most * (1 + 1e-9)
        best = min(damage(own) for own in everything if footprint.of(own) <= most * (1 + 1e-9))
        assert damage(found) <= best * (1 + 2e-3)
        seen |= {key for key in found if "heads" in key}
    assert len(seen) == 2


def test_a_whole_network_within_a_memory_by_groups_and_heads() -> None:
    net = model("llama", **FOUR)
    options: dict[str, Any] = {"cost": "memory", "context": 64, "sparsity": 0.45, "search_evaluations": 4}
    report = seap.prune(net, tokenizer(), task={"toy": TEXTS}, heads="query", min_channels=4, progress=False, **options)
    target = report.target
    assert target is not None and target["after"] <= target["most"]
    now = footprint_of(net, Pruning(cost="memory", context=64)).dense
    assert now == pytest.approx(target["after"], rel=0.01)
    assert {layer["query_heads"] for layer in report.layers} != {4}


@pytest.mark.parametrize("effort", ["quick", "standard"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text", "phi3", "gpt_oss"])
def test_the_whole_way(name: str, effort: Any) -> None:
    dense = model(name, num_key_value_heads=1 if name == "gemma3_text" else 2)
    axes = ("kv_groups",) if name == "gpt_oss" else None
    options: dict[str, Any] = {"effort": effort, "search_evaluations": 8, "min_channels": 4, "progress": False}
    options |= {"sparsity": 0.1 if axes else 0.55, "axes": axes}
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, heads="query", **options)
    assert report.realised_sparsity == pytest.approx(options["sparsity"], abs=0.05)
    arch = describe(dense)
    assert any(axis.queries < arch.queries_per_group for axis in groups_of(arch))
    assert [layer["query_heads"] for layer in report.layers] == [axis.queries for axis in groups_of(arch)]
    assert torch.isfinite(dense(ids()).logits).all() and greedy(dense, ids(1, 5)).shape == (1, 11)


def test_layer_by_layer_it_is_the_same_and_so_by_a_mask_file(tmp_path: Path) -> None:
    dense = str(folder(tmp_path / "dense", num_hidden_layers=4, **FOUR))
    task, found = f"toy={texts_file(tmp_path / 'toy.txt')}", []
    options: dict[str, Any] = {"sparsity": 0.6, "heads": "query", "search_evaluations": 4, "min_channels": 4}
    for streaming in (Streaming(), Streaming(stream=True)):
        out = tmp_path / str(streaming.stream)
        report = prune_to_folder(dense, out, tasks=[task], streaming=streaming, progress=False, **options)
        loaded, _ = seap.load(str(out), device="cpu")
        with torch.no_grad():
            found.append((report.layers, loaded(ids()).logits))
    assert found[0][0] == found[1][0] and {layer["query_heads"] for layer in found[0][0]} != {4}
    assert torch.equal(found[0][1], found[1][1])
    calibrate_to_files(dense, [task], tmp_path / "stats", Calibration(second_moments=True), progress=False)
    stats, mask = tmp_path / "stats" / "toy.safetensors", tmp_path / "mask.safetensors"
    mask_to_file(dense, [stats], mask, Pruning(**options), loading={"device": "cpu"})
    kept = load_masks(mask)[0]
    report = prune_to_folder(dense, tmp_path / "by-mask", stats_files=[stats], mask_file=mask, progress=False)
    assert report.layers == found[0][0] and [key for key in kept if key.endswith("query_heads")]
    assert all(torch.equal(report.masks[key], kept[key]) for key in kept)


def test_what_is_pruned_once_is_pruned_again_and_says_both(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense", **FOUR)), f"toy={texts_file(tmp_path / 'toy.txt')}"
    quick: dict[str, Any] = {"tasks": [task], "effort": "quick", "min_channels": 4, "progress": False}
    quick |= {"heads": "query", "loading": {"device": "cpu"}}
    once = prune_to_folder(dense, tmp_path / "once", sparsity=0.4, **quick)
    twice = prune_to_folder(str(tmp_path / "once"), tmp_path / "twice", sparsity=0.3, **quick)
    again, _ = seap.load(str(tmp_path / "twice"), device="cpu")
    assert twice.params_after < once.params_after and twice.origin is not None
    masks, _ = load_masks(tmp_path / "twice" / "seap" / "mask.safetensors")
    for axis in groups_of(describe(again)):
        assert int(axis.mask_of(masks).sum()) == axis.units * (axis.queries if axis.heads_key in masks else 1)
    assert "query_heads" in inspected(str(tmp_path / "twice"))["layers"][0]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("llama", {"method": "flap"}, "--allocate adaptive doesn't measure"),
        ("llama", {"allocate": "one-width"}, "--allocate one-width doesn't measure"),
        ("llama", {"score": "taylor", "allocate": "damage"}, "which --score taylor doesn't"),
        ("llama", {"axes": ("channels",)}, "only channels are cut"),
        ("llama-mha", {}, "one query head, so groups are heads"),
        ("gpt2", {}, "the heads of gpt2 can't be cut"),
        ("olmo2", {}, "the heads of olmo2 can't be cut"),
    ],
)
def test_what_can_not_go_by_heads_is_refused(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"--heads query.*{reason}"):
        seap.prune(model(name), tokenizer(), task={"toy": TEXTS}, progress=False, heads="query", **options)
