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
from seap.models.arch import describe
from seap.scoring.score import score_inputs
from seap.selection import timing
from seap.selection.damage import Curve
from seap.selection.footprint import Footprint
from seap.selection.options import Pruning
from seap.selection.timing import TimeCurve, _cut, axis_times, best_rounding, token_times
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
            assert _cut(arch, axis, part, 1).shape == expected


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


def test_the_whole_way_and_its_report() -> None:
    dense = model("llama")
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.01, progress=False, **OPTIONS)
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


@pytest.mark.parametrize("options", [{"allocate": "iterative", "score": "gisp"}, {"method": "seap-reference"}])
def test_ways_with_widths_of_their_own_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--cost milliseconds .*has widths of its own"):
        Pruning(**({"cost": "milliseconds"} | options))


def test_rounding_is_the_least_multiple_that_is_about_as_fast_as_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times by hand: up to 4 channels are computed in the time of 4, as by a unit that is four wide."""
    arch = describe(model("llama", intermediate_size=64))
    monkeypatch.setattr(timing, "MULTIPLES", (1, 2, 4, 8))
    monkeypatch.setattr(timing, "_milliseconds", lambda arch, axis, width, tokens=1: -(-width // 4) * 4.0)
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
