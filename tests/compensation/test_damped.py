"""Triangles inverted in products."""

import pytest
import torch

from seap.compensation.damped import inverse_of, inverted, lower_times, times_lower


def test_a_triangle_is_inverted_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.compensation.damped.HALVES", 4)
    rows = torch.randn(60, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = torch.linalg.cholesky(rows.t() @ rows)
    torch.testing.assert_close(inverted(factor) @ factor, torch.eye(37, dtype=torch.float64), rtol=0, atol=1e-9)
    assert not inverted(factor).triu(1).any()


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
