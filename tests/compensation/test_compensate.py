"""Reconstruction against arithmetic by brute force."""

import pytest
import torch
from correlated import moments

from seap.activations.moments import Moments
from seap.compensation.compensate import (
    DAMPING,
    held_out_error,
    lowest,
    mean_bias,
    nystrom,
    output_error,
    ridge,
    ridge_or_bias,
)


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


def test_nystrom_is_least_squares_about_zero_without_a_bias() -> None:
    """MoDeGPT, algorithm 1: W_D becomes (S_kᵀ C S_k)⁺ S_kᵀ C W_D, with C = Σ h hᵀ."""
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(60, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double() + 0.7
    weight = torch.randn(4, 6, generator=generator).double()
    keep = torch.tensor([True, False, True, True, False, True])
    found = nystrom(weight, Moments.of(h, second=True), keep)
    gram = h.t() @ h
    expected = (torch.linalg.pinv(gram[keep][:, keep]) @ gram[keep] @ weight.t()).t()
    assert found.weight is not None and not found.bias.any()
    torch.testing.assert_close(found.weight, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("keep", [[1, 0, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1, 1, 0]])
def test_the_error_of_a_damping_needs_no_weight_of_what_goes(blocks: int, keep: list[int]) -> None:
    generator = torch.Generator().manual_seed(7)
    rows = (
        torch.randn(50, 8, generator=generator, dtype=torch.float64) @ torch.randn(8, 8, generator=generator).double()
    )
    fit, held = (Moments.of(part + 1, second=True, blocks=blocks) for part in (rows[:35], rows[35:]))
    weight, mask = torch.randn(5, 8, generator=generator, dtype=torch.float64), torch.tensor(keep).bool()
    error = held_out_error(weight, fit, held, mask)
    for damping in DAMPING:
        expected = output_error(weight, held, mask, ridge(weight, fit, mask, damping))
        assert error(damping) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("best", range(5))
def test_the_lowest_of_a_valley_is_found_in_few_steps(best: int) -> None:
    asked = []

    def error(value: float) -> float:
        asked.append(value)
        return abs(value - best)

    assert lowest([0, 1, 2, 3, 4], error) == (best, 0)
    assert len(asked) == len(set(asked)) <= 4
