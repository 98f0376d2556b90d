"""Moments of rows whose columns depend on each other, some rows held out."""

import torch

from seap.activations.moments import Moments


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
