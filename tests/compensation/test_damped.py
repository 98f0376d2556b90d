"""Triangles inverted in products."""

import pytest
import torch

from seap.compensation.damped import (
    factor_damped,
    factor_of,
    inverse_of,
    invert_,
    lower_times,
    solve_factored,
    times_lower,
)
from seap.errors import UserError


def test_a_triangle_is_inverted_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.compensation.damped.HALVES", 4)
    rows = torch.randn(60, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = torch.linalg.cholesky(rows.t() @ rows)
    found = factor.clone()
    assert invert_(found) is found and not found.triu(1).any()
    torch.testing.assert_close(found @ factor, torch.eye(37, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_factor_takes_the_place_of_what_was_made_for_it() -> None:
    rows = torch.randn(60, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = rows.t() @ rows / 60
    made: list[torch.Tensor] = []

    def make() -> torch.Tensor:
        made.append(covariance.clone())
        return made[-1]

    factor = factor_of(make, 0.1)
    damped = covariance + 0.1 * covariance.diagonal().mean() * torch.eye(37, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.t(), damped)
    assert len(made) == 1 and factor.untyped_storage().data_ptr() == made[0].untyped_storage().data_ptr()
    before = covariance.clone()
    assert torch.equal(factor_damped(covariance, 0.1), factor) and torch.equal(covariance, before)


def test_what_is_too_singular_is_made_anew_and_damped_more() -> None:
    made: list[torch.Tensor] = []

    def make() -> torch.Tensor:
        made.append(torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=torch.float64))  # eigenvalues 4 and −2
        return made[-1]

    factor = factor_of(make, 0.1)
    assert len(made) == 3  # λ of 0.1, 1 and 10
    torch.testing.assert_close(factor @ factor.t(), torch.tensor([[11.0, 3.0], [3.0, 11.0]], dtype=torch.float64))
    with pytest.raises(UserError, match="can't be inverted"):
        factor_damped(torch.full((2, 2), torch.nan, dtype=torch.float64), 0.1)


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 100])
def test_an_inverse_is_made_of_its_factor_s(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.compensation.damped.HALVES", 4)
    monkeypatch.setattr("seap.compensation.damped.ROWS", rows)
    values = torch.randn(60, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = values.t() @ values
    found = inverse_of(torch.linalg.cholesky(matrix))
    torch.testing.assert_close(found @ matrix, torch.eye(37, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, found.t())


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 100])
def test_zeros_of_a_triangle_are_left_out(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.compensation.damped.ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    lower, columns = (torch.randn(37, n, generator=generator, dtype=torch.float64) for n in (37, 3))
    lower = lower.tril()
    torch.testing.assert_close(lower_times(lower, columns), lower @ columns)
    torch.testing.assert_close(times_lower(columns.t(), lower), columns.t() @ lower)


@pytest.mark.parametrize("outputs", [0, 1, 9])
def test_what_is_solved_by_a_factor(outputs: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(60, 23, generator=generator, dtype=torch.float64)
    right = torch.randn(outputs, 23, generator=generator, dtype=torch.float64)
    found = solve_factored(factor_damped(rows.t() @ rows, 0.1), right)
    damped = rows.t() @ rows + 0.1 * (rows.t() @ rows).diagonal().mean() * torch.eye(23, dtype=torch.float64)
    torch.testing.assert_close(found @ damped, right)
