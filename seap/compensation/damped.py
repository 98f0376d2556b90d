"""Linear systems with a covariance that may be singular: fewer tokens than inputs, or inputs that say the same."""

import torch
from torch import Tensor

from seap.errors import UserError

HALVES = 512  # inputs up to which a triangle is inverted at once
ROWS = 1024  # of a product of which only a triangle is wanted that are made at a time


def solve_damped(covariance: Tensor, right: Tensor, damping: float) -> Tensor:
    """X (O, k) with X (C + λI) = right (O, k), λ = damping · mean diag C, raised tenfold while C is too singular."""
    return torch.cholesky_solve(right.t(), factor_damped(covariance, damping)).t() if len(covariance) else right


def factor_damped(covariance: Tensor, damping: float) -> Tensor:
    """L (k, k), lower, with LLᵀ = C + λI and the same λ."""
    if not len(covariance):  # nothing is kept
        return covariance
    diagonal, damped = covariance.diagonal(), covariance.clone()  # the one copy: a wide axis's takes half a GB
    scale = diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    for power in range(8):
        damped.diagonal().copy_(diagonal + scale * damping * 10**power)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            found: Tensor = factor
            return found
    raise UserError(
        "second moments can't be inverted at any damping; are there NaN or infinite values in the statistics? "
        "calibrate again, or use --compensate bias"
    )


def inverted(factor: Tensor) -> Tensor:
    """L⁻¹ of a lower triangle (C, C), by halves, so that nearly all of it is products."""
    size = len(factor)
    if size <= HALVES:
        eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, eye, upper=False)
    half = size // 2
    found = torch.zeros_like(factor)
    found[:half, :half], found[half:, half:] = inverted(factor[:half, :half]), inverted(factor[half:, half:])
    below = lower_times(found[half:, half:], factor[half:, :half])
    found[half:, :half] = times_lower(below, found[:half, :half]).neg_()
    return found


def inverse_of(factor: Tensor) -> Tensor:
    """(LLᵀ)⁻¹ of a lower triangle L (k, k): in products, which take half as long as `torch.cholesky_inverse`."""
    size, half = len(factor), inverted(factor)
    del factor
    found = torch.empty_like(half)
    for first in range(0, size, ROWS):
        upto = min(first + ROWS, size)
        found[first:upto, :upto] = half[first:, first:upto].t() @ half[first:, :upto]
        found[:first, first:upto] = found[first:upto, :first].t()
    return found


def lower_times(lower: Tensor, columns: Tensor) -> Tensor:
    """L M of a lower triangle L (k, k) and columns M (k, n), without most of the zeros."""
    ends = range(ROWS, len(lower) + ROWS, ROWS)
    return torch.cat([lower[end - ROWS : end, :end] @ columns[:end] for end in ends])


def times_lower(rows: Tensor, lower: Tensor) -> Tensor:
    """M L of rows M (n, k) and a lower triangle L (k, k), without most of the zeros."""
    starts = range(0, len(lower), ROWS)
    return torch.cat([rows[:, start:] @ lower[start:, start : start + ROWS] for start in starts], 1)
