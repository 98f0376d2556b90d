"""Linear systems with a covariance that may be singular: fewer tokens than inputs, or inputs that say the same."""

import torch
from torch import Tensor

from seap.errors import UserError


def solve_damped(covariance: Tensor, right: Tensor, damping: float) -> Tensor:
    """X (O, k) with X (C + λI) = right (O, k), λ = damping · mean diag C, raised tenfold while C is too singular."""
    return torch.cholesky_solve(right.t(), factor_damped(covariance, damping)).t() if len(covariance) else right


def factor_damped(covariance: Tensor, damping: float) -> Tensor:
    """L (k, k), lower, with LLᵀ = C + λI and the same λ."""
    if not len(covariance):  # nothing is kept
        return covariance
    scale = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for power in range(8):
        factor, failed = torch.linalg.cholesky_ex(covariance + scale * damping * 10**power * eye)
        if not failed:
            found: Tensor = factor
            return found
    raise UserError(
        "second moments can't be inverted at any damping; are there NaN or infinite values in the statistics? "
        "calibrate again, or use --compensate bias"
    )
