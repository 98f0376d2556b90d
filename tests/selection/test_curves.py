"""Damage in closed form, against explicit errors over rows, and against the KL that small errors really make."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import MOE, model
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from seap.activations.calibration import calibrate
from seap.activations.moments import Moments
from seap.activations.stats import Statistics
from seap.compensation.compensate import Repair, fitting, mean_bias, repair_axis, ridge
from seap.models.arch import Arch, describe
from seap.models.axes import Axis
from seap.scoring.score import score_inputs
from seap.scoring.sensitivity import fisher
from seap.selection.blocks import blocks_of
from seap.selection.curves import closed_curves, closed_widths, damage_at
from seap.selection.mask import choose_units, unit_places
from seap.text.corpus import Corpus
from seap.text.options import Calibration

OUTPUTS, INPUTS = 5, 12
GENERATOR = torch.Generator().manual_seed(0)


def an_axis(unit_inputs: int, **changes: Any) -> Axis:
    axis = next(axis for axis in describe(model("llama")).axes if axis.name == "channels")
    return replace(axis, units=INPUTS // unit_inputs, unit_inputs=unit_inputs, **changes)


def a_weight() -> Tensor:
    return torch.randn(OUTPUTS, INPUTS, generator=GENERATOR, dtype=torch.float64)


def rows_of(count: int, size: int = INPUTS) -> Tensor:
    mixing = torch.randn(size, size, generator=GENERATOR, dtype=torch.float64)
    return torch.randn(count, size, generator=GENERATOR, dtype=torch.float64) @ mixing + 1


def both(fit: Tensor, held: Tensor, blocks: int = 1) -> Moments:
    """Moments of all rows, with the last ones held out."""
    found = Moments.of(fit, second=True, blocks=blocks)
    found.add_(apart := Moments.of(held, second=True, blocks=blocks))
    found.held = apart
    return found


def squared(values: Tensor) -> Tensor:
    return values.t() @ values / len(values)


def explicit(weight: Tensor, rows: Tensor, keep: Tensor, repair: Repair | None, information: Tensor) -> float:
    """½ E[eᵀ F e] over rows."""
    kept = weight[:, keep] if repair is None or repair.weight is None else repair.weight
    error = rows @ weight.t() - rows[:, keep] @ kept.t() - (0 if repair is None else repair.bias)
    return 0.5 * float(((error @ information) * error).sum(1).mean())


@pytest.mark.parametrize("unit_inputs", [1, 3])
@pytest.mark.parametrize("compensate", ["ridge", "bias", "none"])
def test_it_is_the_mean_over_held_out_rows(unit_inputs: int, compensate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.selection.blocks.UNTESTED_DAMPING", 1e-9)  # whose scale differs
    axis, fit, held = an_axis(unit_inputs), rows_of(80), rows_of(30)
    weight, information = (
        torch.randn(OUTPUTS, INPUTS, generator=GENERATOR, dtype=torch.float64),
        squared(rows_of(20, OUTPUTS)),
    )
    scores = {axis.key: torch.rand(INPUTS, generator=GENERATOR, dtype=torch.float64)}
    blocks = blocks_of(axis, weight, {axis.key: both(fit, held)}, unit_places(axis, scores), compensate)
    widths = list(range(1, axis.units + 1))
    found = damage_at(blocks, information, widths, has_bias=compensate != "none")
    for width, damage in zip(widths, found, strict=True):
        keep = choose_units([axis], scores, {axis.key: width})[axis.key].repeat_interleave(unit_inputs)
        repairs = {"ridge": lambda *given: ridge(*given, 1e-9), "bias": mean_bias, "none": lambda *given: None}
        repair = repairs[compensate](weight, Moments.of(fit, second=True), keep)
        assert damage == pytest.approx(explicit(weight, held, keep, repair, information), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("compensate", ["ridge", "bias"])
@pytest.mark.parametrize("rows", [1, 5, 12, 100])
def test_a_triangle_summed_in_pieces_is_the_whole(rows: int, compensate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    axis, moments = an_axis(1), both(rows_of(80), rows_of(30))
    weight, information = a_weight(), squared(rows_of(20, OUTPUTS))
    scores = {axis.key: torch.rand(INPUTS, generator=GENERATOR, dtype=torch.float64)}
    given, widths = ({axis.key: moments}, unit_places(axis, scores), compensate), list(range(1, INPUTS))
    expected = damage_at(blocks_of(axis, weight, *given), information, widths, has_bias=True)
    monkeypatch.setattr("seap.selection.blocks.ROWS", rows)
    found = damage_at(blocks_of(axis, weight, *given), information, widths, has_bias=True)
    assert found == pytest.approx(expected, rel=1e-9)
    rough = damage_at(blocks_of(axis, weight.float(), *given), information, widths, has_bias=True)  # its products too
    assert rough != expected
    assert rough == pytest.approx(expected, rel=1e-4)


def test_in_blocks_the_errors_add_up() -> None:
    """Inputs of different blocks that are uncorrelated on the held-out rows: then a sum over blocks is exact."""
    axis, fit = an_axis(1), rows_of(80)
    held = torch.linalg.qr(rows_of(40) - 1).Q
    held = held - held.mean(0)
    held = held @ torch.linalg.inv(torch.linalg.cholesky(held.t() @ held)).t()  # orthogonal, of mean 0
    weight, information = (
        torch.randn(OUTPUTS, INPUTS, generator=GENERATOR, dtype=torch.float64),
        squared(rows_of(20, OUTPUTS)),
    )
    scores = {axis.key: torch.rand(INPUTS, generator=GENERATOR, dtype=torch.float64)}
    moments = both(fit, held, blocks=3)
    blocks = blocks_of(axis, weight, {axis.key: moments}, unit_places(axis, scores), "ridge")
    [damage] = damage_at(blocks, information, [7], has_bias=True)
    keep = choose_units([axis], scores, {axis.key: 7})[axis.key]
    repair = ridge(weight, moments.without_held(), keep, 1e-2)
    assert damage == pytest.approx(explicit(weight, held, keep, repair, information), rel=0.05)  # another λ


ROWS = tuple(tuple(row) for row in torch.randint(3, 90, (60, 12), generator=torch.Generator().manual_seed(5)).tolist())


def measured(name: str) -> tuple[Arch, Statistics, dict[str, Tensor]]:
    arch = describe(model(name))
    statistics = calibrate(arch.model, Corpus("toy", ROWS, "t"), Calibration(second_moments=True), progress=False)
    with torch.no_grad():
        found = fisher(arch, ROWS, seed=0, batch_tokens=999, progress=False)
    return arch, statistics, {key: value / sum(map(len, ROWS)) for key, value in found.items()}


@pytest.mark.parametrize("name", sorted(MOE))
def test_experts_are_fitted_one_by_one_on_the_tokens_that_they_see(name: str) -> None:
    arch, statistics, sensitivity = measured(name)
    scores = score_inputs(arch, statistics, "obs")
    for axis in (axis for axis in arch.axes if axis.usage_key):
        [width] = [axis.units // 2]
        weight = arch.weight(axis.layer, axis.consumer).detach().double()
        places = unit_places(axis, scores)
        [damage] = damage_at(
            blocks_of(axis, weight, statistics, places, "ridge"), sensitivity[axis.key], [width], has_bias=False
        )
        keep = choose_units([axis], scores, {axis.key: width})[axis.key]
        source = {axis.key: statistics[axis.key].without_held(), axis.usage_key: statistics[axis.usage_key]}
        repair = repair_axis(axis, weight, source, keep, lambda *given: ridge(*given, 1e-2))
        off = weight.clone()
        off[:, keep] -= repair.weight  # type: ignore[operator]
        held = fitting(axis, statistics).held
        assert held is not None
        parts = zip(off.chunk(axis.experts, 1), held.split(axis.experts), strict=True)
        expected = (
            sum(float(((sensitivity[axis.key].double() @ d) * (d @ m.covariance)).detach().sum()) for d, m in parts) / 2
        )
        assert damage == pytest.approx(
            expected, rel=0.1
        )  # λ is over the variance of all inputs there, of kept ones here


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma3_text", "olmo2"])
def test_a_small_error_costs_what_the_closed_form_says(name: str) -> None:
    """The KL of a small random change of a consumer; of the last layer, where an error reaches no other token."""
    arch, statistics, sensitivity = measured(name)
    tokens = torch.tensor(ROWS)
    dense: Any = arch.model.double()
    with torch.no_grad():
        before = log_softmax(dense(tokens).logits, -1)
    for axis in arch.axes[-2:]:
        weight, moments = arch.weight(axis.layer, axis.consumer), fitting(axis, statistics)
        error = 0.005 * torch.randn(weight.shape, generator=GENERATOR, dtype=torch.float64)
        with torch.no_grad():
            weight.add_(error)
            after = log_softmax(dense(tokens).logits, -1)
            weight.sub_(error)
        kl = float(kl_div(after, before, log_target=True, reduction="none").sum(-1).mean())
        second = moments.covariance + torch.outer(moments.mean, moments.mean)
        predicted = float(((sensitivity[axis.key].double() @ error) * (error @ second)).sum()) / 2
        assert predicted == pytest.approx(kl, rel=0.3)


def test_a_curve_falls_with_width_and_is_0_at_the_whole() -> None:
    arch, statistics, sensitivity = measured("llama")
    scores = score_inputs(arch, statistics, "obs-fisher", sensitivity=sensitivity)
    least = {axis.key: 1 if axis.unit_inputs > 1 else 4 for axis in arch.axes}
    curves = closed_curves(arch, arch.axes, least, 4, scores, statistics, sensitivity, "ridge")
    for axis in arch.axes:
        curve = curves[axis.key]
        assert curve.widths[0] == least[axis.key] and curve.widths[-1] == axis.units and curve.damage[-1] == 0
        assert curve.damage[0] == max(curve.damage) > 0
        assert all(width % 4 == 0 for width in closed_widths(axis, 4, 4)) or axis.unit_inputs > 1
