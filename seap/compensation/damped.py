"""Linear systems with a covariance that may be singular: fewer tokens than inputs, or inputs that say the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from seap.errors import UserError

HALVES = 512  # inputs up to which a triangle is inverted at once
ROWS = 1024  # of a product of which only a triangle is wanted that are made at a time


def solve_damped(covariance: Tensor, right: Tensor, damping: float) -> Tensor:
    """X (O, k) with X (C + λI) = right (O, k), λ = damping · mean diag C, raised tenfold while C is too singular."""
    return solve_factored(factor_damped(covariance, damping), right) if len(covariance) else right


def solve_made(made: Callable[[], Tensor], right: Tensor, damping: float) -> Tensor:
    """The same of a covariance that is made for it (`factor_of`)."""
    return solve_factored(factor_of(made, damping), right) if right.shape[1] else right


def solve_factored(factor: Tensor, right: Tensor) -> Tensor:
    """X with X LLᵀ = right (O, k), of a lower triangle L (k, k): as `torch.cholesky_solve`, which copies L."""
    half = torch.linalg.solve_triangular(factor, right.t(), upper=False)
    return torch.linalg.solve_triangular(factor.t(), half, upper=True).t()


def factor_damped(covariance: Tensor, damping: float) -> Tensor:
    """L (k, k), lower, with LLᵀ = C + λI and the same λ."""
    return factor_of(covariance.clone, damping)


def factor_of(made: Callable[[], Tensor], damping: float) -> Tensor:
    """The same of a covariance that is made for it and factored where it lies: a wide axis's takes half a GB."""
    for power in range(8):
        factor = made().t()  # the order in which LAPACK has it, so that nothing is copied
        if not len(factor):  # nothing is kept
            return factor
        diagonal = factor.diagonal()
        diagonal += diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny) * damping * 10**power
        failed = torch.empty((), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not failed:
            return factor
    raise UserError(
        "second moments can't be inverted at any damping; are there NaN or infinite values in the statistics? "
        "calibrate again, or use --compensate bias"
    )


def invert_(factor: Tensor) -> Tensor:
    """L⁻¹ of a lower triangle (C, C) in its place, by halves, so that nearly all of it is products."""
    size = len(factor)
    if size <= HALVES:
        eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
        return factor.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
    half = size // 2
    first, last = invert_(factor[:half, :half]), invert_(factor[half:, half:])
    factor[half:, :half] = times_lower(lower_times(last, factor[half:, :half]), first).neg_()
    return factor


def inverse_of(factor: Tensor) -> Tensor:
    """(LLᵀ)⁻¹ in the place of a lower triangle L (k, k): in half the time of `torch.cholesky_inverse`."""
    half = invert_(factor)
    for first in range(0, len(half), ROWS):  # rows above are not needed by those below
        rows = slice(first, first + ROWS)
        found = half[first:, rows].t() @ half[first:, : first + ROWS]
        half[rows, :first] = found[:, :first]
        half[rows, rows] = found[:, first:].t()  # as it stands in what is returned
        half[:first, rows] = found[:, :first].t()
    return half.t()  # row after row, where LAPACK's order is column after column


def lower_times(lower: Tensor, columns: Tensor) -> Tensor:
    """L M of a lower triangle L (k, k) and columns M (k, n), without most of the zeros."""
    ends = range(ROWS, len(lower) + ROWS, ROWS)
    return torch.cat([lower[end - ROWS : end, :end] @ columns[:end] for end in ends])


def times_lower(rows: Tensor, lower: Tensor) -> Tensor:
    """M L of rows M (n, k) and a lower triangle L (k, k), without most of the zeros."""
    starts = range(0, len(lower), ROWS)
    return torch.cat([rows[:, start:] @ lower[start:, start : start + ROWS] for start in starts], 1)
