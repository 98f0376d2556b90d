"""Reconstruction, OBS, knapsack, search and refit against arithmetic by brute force."""

import itertools
from typing import Any

import pytest
import torch
from tiny import ALL, ids, model
from toy import TEXTS, tokenizer

import seap
from seap.activations.calibration import calibrate
from seap.activations.layerwise import Walk, resume
from seap.activations.moments import Moments
from seap.compensation.compensate import mean_bias, output_error, ridge, ridge_or_bias
from seap.models.arch import describe
from seap.scoring.obs import removal, removal_costs
from seap.selection.knapsack import choose_options
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import Batch, build_corpus
from seap.text.options import Calibration


def moments(count: int = 60, size: int = 6, seed: int = 0) -> tuple[Moments, torch.Tensor, torch.Tensor]:
    """Moments of correlated rows with every fifth held out, the rows, and a weight (4, size)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing + 1
    held = torch.arange(count) % 5 == 4
    found, apart = Moments.of(rows[~held], second=True), Moments.of(rows[held], second=True)
    found.add_(apart)
    found.held = apart
    return found, rows, torch.randn(4, size, generator=generator, dtype=torch.float64)


def test_ridge_is_the_least_squares_solution() -> None:
    found, rows, weight = moments()
    keep = torch.tensor([True, True, False, True, False, True])
    repair = ridge(weight, found, keep, 1e-12)
    inputs = torch.cat([rows[:, keep], torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(inputs, rows @ weight.t()).solution
    assert repair.weight is not None
    torch.testing.assert_close(repair.weight, solution[:-1].t(), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(repair.bias, solution[-1], atol=1e-7, rtol=1e-7)
    left = (rows @ weight.t() - rows[:, keep] @ repair.weight.t() - repair.bias).square().sum(1).mean()
    assert output_error(weight, found, keep, repair) == pytest.approx(float(left), abs=1e-8)


@pytest.mark.parametrize("count", [8, 20, 60])
@pytest.mark.parametrize("seed", range(4))
def test_ridge_is_never_worse_than_the_bias_on_held_out_rows(count: int, seed: int) -> None:
    """Also with hardly more tokens than channels."""
    found, _, weight = moments(count, seed=seed)
    keep = torch.tensor([True, False, True, True, False, False])
    chosen = ridge_or_bias(weight, found, keep)
    fit, held = found.without_held(), found.held
    assert held is not None
    damping = float(chosen.about.split()[1]) if chosen.weight is not None else None
    mine = mean_bias(weight, fit, keep) if damping is None else ridge(weight, fit, keep, damping)
    assert output_error(weight, held, keep, mine) <= output_error(weight, held, keep, mean_bias(weight, fit, keep))


@pytest.mark.parametrize("unit_inputs", [1, 2])
def test_obs_costs_are_the_errors_left_after_refitting(unit_inputs: int) -> None:
    found, _, weight = moments()
    covariance = found.covariance
    costs = removal_costs(weight, torch.linalg.inv(covariance), unit_inputs)
    for unit in range(6 // unit_inputs):
        keep = torch.ones(6, dtype=torch.bool)
        keep[unit * unit_inputs : (unit + 1) * unit_inputs] = False
        left = output_error(weight, found, keep, ridge(weight, found, keep, 1e-14))
        assert float(costs[unit]) == pytest.approx(left, rel=1e-6)


def test_obs_removal_takes_each_unit_once_and_scores_follow_the_order() -> None:
    found, _, weight = moments(size=12)
    order = removal(weight, found, 2)
    assert sorted(order.order.tolist()) == list(range(6))
    assert torch.sort(order.scores()).indices.tolist() == order.order.tolist()


def test_the_knapsack_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    options = [
        [(float(i * (k + 1)), float(torch.rand((), generator=generator)) * i) for i in range(4)] for k in range(4)
    ]
    for target in (3.0, 11.0, 22.0):
        chosen = choose_options(options, target)
        assert sum(axis[i][0] for axis, i in zip(options, chosen, strict=True)) >= target
        best = min(
            sum(axis[i][1] for axis, i in zip(options, places, strict=True))
            for places in itertools.product(range(4), repeat=4)
            if sum(axis[i][0] for axis, i in zip(options, places, strict=True)) >= target
        )
        assert sum(axis[i][1] for axis, i in zip(options, chosen, strict=True)) == pytest.approx(best, rel=1e-3)
    with pytest.raises(ValueError, match="more than all options"):
        choose_options(options, 1e6)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_model_runs_layer_by_layer_as_it_does_whole(name: str) -> None:
    dense = model(name)
    arch, tokens = describe(dense), ids()
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        whole = dense(tokens).logits
        walk = Walk.start(arch, [row.tolist() for row in tokens], batch_tokens=999)
        hidden = walk.hidden[0]
        assert len(walk.batches) == 1
        for layer in range(len(arch.layers)):
            torch.testing.assert_close(resume(arch, batch, layer, hidden) if layer else whole, whole)
            hidden = walk.run(layer, 0, hidden)
        torch.testing.assert_close(resume(arch, batch, len(arch.layers), hidden), whole)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_the_whole_method_on_families_that_differ(name: str) -> None:
    dense = model(name)
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.2, min_channels=4, progress=False)
    assert report.realised_sparsity == pytest.approx(0.2, abs=0.03)
    assert torch.isfinite(dense(ids()).logits).all()


def test_one_ranking_serves_many_sparsities_and_search_keeps_the_budget() -> None:
    dense: Any = model("llama")
    data = build_corpus("toy", TEXTS, tokenizer(), Calibration(), source="test", seq_len=64)
    statistics = {"toy": calibrate(dense, data, Calibration(second_moments=True), progress=False)}
    ranking = rank(dense, statistics, Pruning(min_channels=4, search_evaluations=20))
    arch = describe(dense)
    unit = max(axis.unit_params for axis in arch.axes if axis.name == "channels")
    for sparsity in (0.2, 0.5):
        masks = ranking.masks(sparsity)
        removed = sum(int((~masks[a.key]).sum()) * a.unit_params for a in arch.axes)
        assert abs(removed - sparsity * arch.prunable_params) <= unit


def test_in_blocks_each_block_is_fitted_and_scored_alone() -> None:
    """Where inputs of different blocks are uncorrelated, as one block gives; else each block's own solution."""
    generator = torch.Generator().manual_seed(0)
    data, weight = torch.randn(80, 8, generator=generator), torch.randn(4, 8, generator=generator, dtype=torch.float64)
    keep = torch.tensor([True, False, True, True, False, True, True, False])
    found = Moments.of(data, second=True, blocks=2)
    repair = ridge(weight, found, keep, 1e-3)
    halves = [
        ridge(weight[:, place], Moments.of(data[:, place], second=True), keep[place], 1e-3)
        for place in (slice(4), slice(4, 8))
    ]
    assert repair.weight is not None
    torch.testing.assert_close(repair.weight, torch.cat([half.weight for half in halves], 1))  # type: ignore[misc]
    torch.testing.assert_close(repair.bias, halves[0].bias + halves[1].bias)
    assert found.co is not None
    apart = Moments(found.count, found.mean, found.m2, torch.block_diag(*found.co))
    assert output_error(weight, found, keep, repair) == pytest.approx(output_error(weight, apart, keep, repair))


def test_the_whole_method_in_blocks() -> None:
    dense = model("llama")
    report = seap.prune(
        dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.3, min_channels=4, moments="block:16", progress=False
    )
    assert report.realised_sparsity == pytest.approx(0.3, abs=0.03)
    assert torch.isfinite(dense(ids()).logits).all()
