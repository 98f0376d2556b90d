"""Time as the cost of a width: the curve of an axis, and widths within a share of the time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALL, model
from toy import TEXTS, folder, tokenizer

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import Axis
from seap.scoring.score import score_inputs
from seap.selection import timing
from seap.selection.damage import Curve
from seap.selection.footprint import Footprint, footprint_of
from seap.selection.options import Pruning
from seap.selection.timing import TimeCurve, _cut, _first, axis_times, best_rounding, token_times
from seap.selection.widths import within
from seap.selection.within import budgets_for

OPTIONS: dict[str, Any] = {"allocate": "damage", "cost": "milliseconds", "min_channels": 1}


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_axis_has_a_curve_and_what_is_timed_has_the_shapes_of_the_cut_linears(name: str) -> None:
    arch = describe(model(name))
    times = axis_times(arch, arch.axes)
    for axis in arch.axes:
        curve = times[axis.key]
        assert curve.widths[-1] == axis.units and list(curve.milliseconds) == sorted(curve.milliseconds)
        assert curve.milliseconds[0] > 0
        for part in axis.slices:
            rows, columns = arch.weight(axis.layer, part.module).shape
            expected = (rows, columns // axis.units) if part.consumer else (rows // axis.units, columns)
            assert _cut(arch, axis, part, _first(axis, 1)).shape == expected


def test_between_measured_widths_it_is_linear_and_below_them_in_proportion() -> None:
    curve = TimeCurve((2, 4), (10.0, 14.0))
    assert curve.at([4, 3, 2, 1, 0]) == [14.0, 12.0, 10.0, 5.0, 0.0]


def test_widths_within_a_share_of_the_time() -> None:
    """Two axes: cutting the second saves nothing until it is halved, so the first is cut instead."""
    arch = describe(model("llama"))
    first, second = (axis for axis in arch.axes[:4] if axis.name == "kv_groups")
    curves = {axis.key: Curve((1, 2, 3, 4), (9.0, 4.0, 1.0, 0.0)) for axis in (first, second)}
    times = {
        first.key: TimeCurve((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0)),
        second.key: TimeCurve((1, 2, 3, 4), (4.0, 4.0, 4.0, 4.0)),
    }
    choices = [[(axis, width) for width in (4, 3, 2, 1)] for axis in (first, second)]
    whole = Footprint("milliseconds", 10.0, 1.5, 0.5, times)
    assert within(choices, curves, whole, 8.0) == {first.key: 2, second.key: 4}
    with pytest.raises(UserError, match=r"at least 7 ms stays with the smallest widths, and 5 ms was asked"):
        within(choices, curves, whole, 5.0)


def test_time_in_proportion_to_parameters_gives_the_widths_of_parameters() -> None:
    arch = describe(model("llama"))
    scores = score_inputs(arch, None, "random")
    curves = {
        a.key: Curve(tuple(range(1, a.units + 1)), tuple((a.units - w) ** 2.0 for w in range(1, a.units + 1)))
        for a in arch.axes
    }
    times = {a.key: TimeCurve((a.units,), (a.params / 1000,)) for a in arch.axes}
    options, whole = Pruning(sparsity=0.4, **OPTIONS), sum(a.params / 1000 for a in arch.axes)
    found = budgets_for(arch, options, scores, curves, Footprint("milliseconds", whole, 0.0, 0.0, times))
    gone = sum((a.units - found[a.key]) * a.unit_params for a in arch.axes) / arch.prunable_params
    assert 0.4 <= gone < 0.4 + max(a.unit_params for a in arch.axes) / arch.prunable_params


def by_weights(arch: Arch, axis: Axis, keep: torch.Tensor, tokens: int = 1) -> float:
    """In place of a measurement: a microsecond for every weight of the cut linears."""
    return sum(_cut(arch, axis, part, keep).numel() for part in axis.slices if not part.values) / 1000


def test_the_whole_way_and_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's time is its calls, of which no width saves any: its linears count as if they took long."""
    monkeypatch.setattr(timing, "_milliseconds", by_weights)
    dense = model("llama")
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.2, progress=False, **OPTIONS)
    assert 0 < report.realised_sparsity < 1
    assert any("of the time" in note and "parameters" in note for note in report.notes)
    assert report.target is not None and report.target["after"] <= report.target["most"] < report.target["before"]
    assert torch.isfinite(dense(torch.tensor([[5, 6, 7]])).logits).all()


def test_what_stands_beside_the_linears_and_is_read_of_the_cache_goes_with_its_units() -> None:
    curve = TimeCurve((1, 4), (1.0, 4.0), beside=6.0, read=0.5)
    assert curve.at([4, 1, 0]) == [12.0, 7.5, 0.0] and curve.slower(2.0).at([4]) == [16.0]
    arch = describe(model("llama"))
    times, rest = token_times(arch, context=32, batch=2)
    assert rest >= 0 and all((times[axis.key].read > 0) <= (axis.name == "kv_groups") for axis in arch.axes)


def test_query_heads_take_their_rows_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time is in proportion to weights a footprint says of any widths and heads what is left after the cut."""
    net = model("llama", num_attention_heads=8, num_key_value_heads=2, head_dim=4)
    monkeypatch.setattr(timing, "_milliseconds", by_weights)
    arch, axes = describe(net), [axis for axis in describe(net).axes if axis.name == "kv_groups"]
    found = footprint_of(net, Pruning(heads="query", **OPTIONS))
    for axis in axes:
        assert found.heads[axis.key] == (axis.heads_key, 4, pytest.approx(2 * 4 * net.config.hidden_size / 1000))
    for groups, heads in ((2, 3), (1, 2), (1, 4), (2, 1)):
        first = axes[0]
        budgets = {first.key: groups, first.heads_key: heads}
        keep = (_first(first, groups)[:, None] & (torch.arange(4) < heads)).view(2, 4)
        gone = by_weights(arch, first, _first(first, 2)) - by_weights(arch, first, keep)
        read = (2 - groups) * found.curves[first.key].read  # type: ignore[attr-defined]
        assert found.of({}) - found.of(budgets) == pytest.approx(gone + read, abs=1e-9)


def test_a_speed_is_met_by_groups_and_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_milliseconds", by_weights)
    net = model("llama", num_attention_heads=8, num_key_value_heads=2, head_dim=4)
    options: dict[str, Any] = {"cost": "milliseconds", "sparsity": 0.2, "search_evaluations": 2, "min_channels": 4}
    report = seap.prune(net, tokenizer(), task={"toy": TEXTS}, heads="query", progress=False, **options)
    assert report.target is not None and report.target["after"] <= report.target["most"] < report.target["before"]
    assert torch.isfinite(net(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize("options", [{"allocate": "iterative", "score": "gisp"}, {"method": "seap-reference"}])
def test_ways_with_widths_of_their_own_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--cost milliseconds .*has widths of its own"):
        Pruning(**({"cost": "milliseconds"} | options))


def test_rounding_is_the_least_multiple_that_is_about_as_fast_as_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times by hand: up to 4 channels are computed in the time of 4, as by a unit that is four wide."""
    arch = describe(model("llama", intermediate_size=64))
    monkeypatch.setattr(timing, "MULTIPLES", (1, 2, 4, 8))
    monkeypatch.setattr(timing, "_milliseconds", lambda arch, axis, keep, tokens=1: -(-int(keep.sum()) // 4) * 4.0)
    best, times = best_rounding(arch, 0.5)
    assert best == 4 and list(times) == [1, 2, 4, 8] and times[1] > times[4] == times[8]


def test_auto_is_measured_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = str(folder(tmp_path / "dense", intermediate_size=512))
    words = ["prune", dense, "--method", "magnitude", "--round-to", "auto", "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    chosen = report["options"]["round_to"]
    assert chosen in timing.MULTIPLES and all(layer["channels"] % chosen == 0 for layer in report["layers"])
    assert any("was chosen by time" in note for note in report["notes"])
