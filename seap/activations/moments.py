"""Moments of activations that add up exactly: count, mean, M2 and, if asked for, the co-moment matrix.

Shapes: N rows (tokens), C inputs of a consumer, B blocks of n inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seap.errors import UserError

EXACT_SIZE = 256  # inputs up to which products are float64, and not sums of float32 ones
ROWS = 1024  # of a wide matrix that are made at a time


@dataclass
class Moments:
    """Moments of N vectors of size C, in float64; wide co-moments on their way to disk, and from it, are float32.

    mean (C,), m2 (C,) = Σ (h − mean)², and optionally co (C, C) = Σ (h − mean)(h − mean)ᵀ, whose diagonal is m2; or of
    it only the B blocks of n = C/B consecutive inputs along the diagonal, co (B, n, n).
    Merges follow Chan, Golub and LeVeque (1979), so any split of the rows gives the same result up to
    float64 rounding; FLAP's running variance loses its first batch and SEAP's code inherits that.
    """

    count: int
    mean: Tensor
    m2: Tensor
    co: Tensor | None = None
    held: Moments | None = None  # of the held-out rows, which all the others include

    @classmethod
    def zeros(cls, size: int, *, second: bool = False, blocks: int = 1, device: torch.device | str = "cpu") -> Moments:
        """No rows yet. `second` keeps the co-moment matrix too (C² float64), or so many blocks of it."""
        zero = torch.zeros(size, dtype=torch.float64, device=device)
        matrix = _no_products(size, blocks, device) if second else None
        return cls(0, zero, zero.clone(), matrix)

    def zeros_like(self) -> Moments:
        return Moments.zeros(
            self.mean.numel(), second=self.co is not None, blocks=self.num_blocks, device=self.mean.device
        )

    @classmethod
    def of(cls, rows: Tensor, *, second: bool = False, blocks: int = 1) -> Moments:
        """The moments of rows (N, C) of any float dtype."""
        rows = rows.to(torch.float64)
        count = rows.shape[0]
        if count == 0:
            return cls.zeros(rows.shape[1], second=second, blocks=blocks, device=rows.device)
        mean = rows.mean(0)
        centred = rows - mean
        parts = centred.view(count, blocks, -1).transpose(0, 1)
        co = (centred.t() @ centred if blocks == 1 else parts.transpose(1, 2) @ parts) if second else None
        return cls(count, mean, centred.square_().sum(0), co)

    def add_(self, other: Moments) -> None:
        """Take in the rows that `other` has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        weight = self.count * other.count / total
        self.m2 += other.m2 + weight * delta.square()
        if other.held is not None:
            self.held = self.held or other.held.zeros_like()
            self.held.add_(other.held)
        if self.co is not None:
            if other.co is None:
                raise UserError("one of the statistics has second moments and the other hasn't")
            if other.co.shape != self.co.shape:
                raise UserError("the statistics' second moments are of blocks of different size; measure both alike")
            _add_in_parts_(self.co, other.co, delta, weight, self.num_blocks)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    @property
    def num_blocks(self) -> int:
        return 1 if self.co is None or self.co.ndim == 2 else len(self.co)

    def split(self, count: int | None = None) -> list[Moments]:
        """Moments of so many equal parts of the inputs, each with its own blocks; by default of each block's inputs."""
        count = count or self.num_blocks
        if count == 1:
            return [self]
        held = [None] * count if self.held is None else self.held.split(count)
        matrices = [None] * count if self.co is None else self.co.chunk(count)
        parts = zip(self.mean.chunk(count), self.m2.chunk(count), matrices, held, strict=True)
        return [
            Moments(self.count, mean, m2, co if co is None or len(co) > 1 else co[0], apart)
            for mean, m2, co, apart in parts
        ]

    @property
    def variance(self) -> Tensor:
        """Unbiased variance (C,), as `torch.var`; zero for fewer than two rows."""
        return self.m2 / max(self.count - 1, 1)

    @property
    def mean_square(self) -> Tensor:
        """E[h²] (C,)."""
        return self.m2 / max(self.count, 1) + self.mean.square()

    @property
    def norm(self) -> Tensor:
        """‖h‖₂ over all rows (C,)."""
        return (self.mean_square * self.count).sqrt()

    @property
    def covariance(self) -> Tensor:
        """Cov(h) (C, C) float64, divided by the count. Of moments in blocks, ask each of `split`."""
        assert self.co is not None and self.co.ndim == 2, "measured without second moments, or in blocks"
        return self.co.to(torch.float64, copy=True).div_(max(self.count, 1))

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cov(h) of some inputs and others, bool (C,) or int64 in any order: (r, c) float64. Not of blocks."""
        return sums_between(self.co, places(rows), places(columns)).div_(max(self.count, 1))

    def without_matrix(self) -> Moments:
        """Means and variances alone."""
        held = None if self.held is None else self.held.without_matrix()
        return Moments(self.count, self.mean, self.m2, None, held)

    def without_held(self) -> Moments:
        """The rows that aren't held out: what a fit may see whose error is then measured on the held-out ones."""
        if self.held is None or self.held.count == 0:
            return self
        held, count = self.held, self.count - self.held.count
        mean = (self.mean * self.count - held.mean * held.count) / max(count, 1)
        weight = count * held.count / self.count
        delta = held.mean - mean
        co = None
        if self.co is not None and held.co is not None:
            co = self.co.to(torch.float64, copy=True).sub_(held.co)
            _add_outer_(co, delta, -weight, self.num_blocks)
        return Moments(count, mean, self.m2 - held.m2 - weight * delta.square(), co)

    def weighted(self, weight: float) -> Moments:
        """As if every row had been seen `weight` times: what a mixture of texts is made of. Counts are rounded."""
        held = None if self.held is None else self.held.weighted(weight)
        co = None if self.co is None else self.co * weight
        return Moments(round(self.count * weight), self.mean.clone(), self.m2 * weight, co, held)

    def about_zero(self) -> Moments:
        """As if the mean were 0 and all that was seen lay around it: what a fit without a bias goes by."""
        held = None if self.held is None else self.held.about_zero()
        co = None
        if self.co is not None:
            co = self.co.to(torch.float64, copy=True)
            _add_outer_(co, self.mean, self.count, self.num_blocks)
        return Moments(self.count, torch.zeros_like(self.mean), self.m2 + self.count * self.mean.square(), co, held)

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Of several parts of the same rows' inputs, side by side; their co-moments are its blocks."""
        if len(parts) == 1:
            return parts[0]
        mean, m2 = torch.cat([part.mean for part in parts]), torch.cat([part.m2 for part in parts])
        blocks = [part.co if part.co is None or part.co.ndim == 3 else part.co[None] for part in parts]
        return cls(parts[0].count, mean, m2, None if blocks[0] is None else torch.cat(blocks))  # type: ignore[arg-type]

    def with_zeros(self, count: int) -> Moments:
        """After so many more rows of zeros."""
        zeros = self.zeros_like()
        zeros.count = count
        total = self.copy()
        total.add_(zeros)
        return total

    def copy(self) -> Moments:
        """One that can be added to without changing this one."""
        copied = self.zeros_like()
        copied.add_(self)
        return copied

    def cpu(self) -> Moments:
        held = None if self.held is None else self.held.cpu()
        return Moments(self.count, self.mean.cpu(), self.m2.cpu(), None if self.co is None else self.co.cpu(), held)


def outer(delta: Tensor, blocks: int) -> Tensor:
    """ddᵀ (C, C), or its diagonal blocks (B, n, n)."""
    if blocks == 1:
        return torch.outer(delta, delta)
    parts = delta.view(blocks, -1)
    return parts[:, :, None] * parts[:, None, :]


def _add_outer_(co: Tensor, delta: Tensor, weight: float, blocks: int) -> None:
    """Add weight · ddᵀ (`outer`), without a copy of it."""
    parts, deltas = co.view(blocks, -1, co.shape[-1]), delta.view(blocks, -1).to(co.dtype)
    parts.baddbmm_(deltas[:, :, None], deltas[:, None, :], alpha=weight)


def _add_in_parts_(co: Tensor, more: Tensor, delta: Tensor, weight: float, blocks: int) -> None:
    """co + more + weight · ddᵀ in the place of co, in float64 some rows at a time: float32 is rounded to once."""
    parts, added = (matrix.view(blocks, -1, co.shape[-1]) for matrix in (co, more))
    deltas = delta.view(blocks, -1)
    for start in range(0, co.shape[-1], ROWS):
        rows = slice(start, start + ROWS)
        whole = parts[:, rows].double().add_(added[:, rows])
        parts[:, rows] = whole.baddbmm_(deltas[:, rows, None], deltas[:, None, :], alpha=weight)


def places(inputs: Tensor) -> Tensor:
    """Inputs as int64, of bool (C,) or of what is that already."""
    return inputs.nonzero().flatten() if inputs.dtype == torch.bool else inputs


def sums_between(co: Tensor | None, rows: Tensor, columns: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of co-moments (C, C) those of some inputs (r,) and others (c,), both int64: (r, c); some rows at a time."""
    assert co is not None and co.ndim == 2, "measured without second moments, or in blocks"
    found = torch.empty(len(rows), len(columns), dtype=dtype, device=co.device)
    for into, some in zip(found.split(ROWS), rows.split(ROWS), strict=True):
        into.copy_(co.index_select(0, some).index_select(1, columns))
    return found


def _no_products(size: int, blocks: int, device: torch.device | str) -> Tensor:
    shape = (size, size) if blocks == 1 else (blocks, size // blocks, size // blocks)
    return torch.zeros(shape, dtype=torch.float64, device=device)
