"""Slopes of KL at a cut model, against differences of KL that is really measured."""

import contextlib
from dataclasses import replace

import pytest
import torch
from tiny import MOE, model

from seap.activations.calibration import calibrate
from seap.models.axes import Masks
from seap.models.modes import evaluation
from seap.selection.damage import Judge, simulated
from seap.selection.mask import budgets_of
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.selection.search import divergence_of
from seap.selection.slopes import gradients_at
from seap.text.corpus import Corpus
from seap.text.options import Calibration

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma3_text", "qwen2"]
ROWS = [torch.randint(5, 60, (24,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(40)]


def ranked(family: str, **changes: object) -> Ranking:
    net = model(family)
    statistics = calibrate(net, Corpus("a", ROWS, "hash"), Calibration(second_moments=True), progress=False)
    options = Pruning(sparsity=0.4, min_channels=1, probe_tokens=192, fisher_tokens=512, **changes)  # type: ignore[arg-type]
    return rank(net, {"a": statistics}, options)


def halved(found: Ranking) -> dict[str, int]:
    return {axis.key: max(axis.units // 2, 1) for axis in found.free}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_change_of_kl_with_the_consumers_weights(family: str) -> None:
    found = ranked(family)
    judge, repair_to, axes, budgets = found.judge, found.repair_to, found.free, halved(found)
    assert isinstance(judge, Judge) and repair_to is not None
    with evaluation(judge.arch.model):
        gradients = {axis: found.product for axis, found in gradients_at(judge, axes, budgets, repair_to)}
        assert [axis.layer for axis in gradients] == sorted((axis.layer for axis in axes), reverse=True)
        for axis in axes[-2:] + axes[:2]:
            direction = torch.randn(gradients[axis].shape, generator=torch.Generator().manual_seed(1))
            expected = float((gradients[axis] * direction).sum())
            step, sides = 2e-3, []
            for sign in (1, -1):
                with contextlib.ExitStack() as stack:
                    for other in axes:
                        cut = repair_to(other, budgets[other.key])
                        stack.enter_context(simulated(judge.arch, other, *cut, whole=True))
                    weight = judge.arch.linear(axis.layer, axis.consumer).weight
                    change = sign * step * direction
                    weight += change.t() if judge.arch.family.transposed else change
                    sides.append(judge.divergence())
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected, rel=0.05, abs=2e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_slope_says_how_kl_changes_with_a_width(family: str) -> None:
    """Near where it stands; whatever the other axes are cut to."""
    found = ranked(family)
    judge, repair_to, axes, slopes, budgets = found.judge, found.repair_to, found.free, found.slopes, halved(found)
    assert judge is not None and repair_to is not None and slopes is not None
    with evaluation(judge.arch.model):
        here = divergence_of(slopes.judge, axes, budgets, repair_to)
        predicted, measured = [], []
        for key, slope in slopes.at(budgets, found.least, repair_to).items():
            axis = next(axis for axis in axes if axis.key == key)
            for width in {max(budgets[key] - 2, 1), min(budgets[key] + 2, axis.units)} - {budgets[key]}:
                at, there = slope.at([budgets[key], width])
                predicted.append(there - at)
                measured.append(divergence_of(slopes.judge, axes, budgets | {key: width}, repair_to) - here)
    assert torch.corrcoef(torch.tensor([predicted, measured]))[0, 1] > 0.9


def test_the_search_descends_first_and_never_ends_worse_for_it() -> None:
    plain, with_slopes = ranked("llama", descents=0), ranked("llama", descents=3)
    assert plain.slopes is None and with_slopes.slopes is not None and with_slopes.judge is not None
    budgets = budgets_of(with_slopes.free, with_slopes.masks(0.6))
    start = budgets_of(plain.free, _unsearched(plain))
    assert with_slopes.repair_to is not None
    with evaluation(with_slopes.arch.model):
        ended, begun = (
            divergence_of(with_slopes.judge, with_slopes.free, own, with_slopes.repair_to) for own in (budgets, start)
        )
    assert ended <= begun * (1 + 1e-6) and budgets != start


def _unsearched(found: Ranking) -> Masks:
    return replace(found, options=replace(found.options, allocate="damage"), known={}).masks(0.6)


def test_axes_of_experts_are_not_descended() -> None:
    found = ranked(next(iter(MOE)))
    assert found.slopes is None and found.judge is not None
