"""Rows of activations, as they come, into moments: float64, wide matrices in float32 for a while.

Rows are taken in pieces that stay in the processor's cache, each centred about its own mean, and put together as by
Chan, Golub and LeVeque (1979). Shapes: N rows (tokens), C inputs of a consumer, B blocks of n inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seap.activations.moments import EXACT_SIZE, Moments
from seap.models.experts import Routed, usage_rows

PIECE = 1 << 19  # numbers of a piece of rows: 4 MB in float64
GATHERED = 2048  # rows that are multiplied at a time
FOLDED = 1 << 14  # rows whose products are added up in float32, before they go to float64
TILE = 256  # rows of a matrix that are computed at a time, from the diagonal on


class Accumulator:
    """Takes in rows; `moments` says what they were.

    blocks: of the co-moment matrix (see `Moments`); none is kept with 0. is_small: leave it in float32 where its
    products are that and were never added up in float64.
    """

    def __init__(
        self, size: int, *, blocks: int = 0, device: torch.device | str = "cpu", is_small: bool = False
    ) -> None:
        self._seen = Moments.zeros(size, device=device)
        self._products = Products(size, blocks, device, is_small=is_small) if blocks else None

    @property
    def device(self) -> torch.device:
        return self._seen.mean.device

    @property
    def is_finite(self) -> Tensor:
        """Whether all rows were, up to overflow: a bool () on the device, so that nothing waits for it."""
        return self._seen.m2.sum().isfinite()

    def update_(self, rows: Tensor, keep: Tensor | None = None) -> None:
        """Take in rows (N, C) of any float dtype, or those of them that keep, bool (N,), marks."""
        length = max(PIECE // rows.shape[1], 1) if rows.device.type == "cpu" else len(rows)
        for start in range(0, len(rows), max(length, 1)):
            piece = rows[start : start + length]
            self._take(piece if keep is None else piece[keep[start : start + length]])

    def _take(self, rows: Tensor) -> None:
        count, before = len(rows), self._seen.count
        if not count:
            return
        centred = rows.to(self.device).to(torch.float64, copy=True)
        mean = centred.mean(0)
        centred -= mean
        if self._products is not None:
            shift = (mean - self._seen.mean) * (before * count / (before + count)) ** 0.5
            self._products.add_(centred, shift)
        self._seen.add_(Moments(count, mean, centred.square_().sum(0)))

    def moments(self) -> Moments:
        """Those of all rows so far. Ends the accumulation."""
        seen, products, self._products = self._seen, self._products, None
        return Moments(seen.count, seen.mean, seen.m2, None if products is None else products.matrix())


class ExpertAccumulator:
    """Of the experts of a layer: what each reads, times the router's weight, 0 for the tokens that go elsewhere.

    size: channels of each of so many experts. blocks: of each one's co-moment matrix; none is kept with 0.
    """

    def __init__(self, experts: int, size: int, *, blocks: int = 0, device: torch.device | str = "cpu") -> None:
        self.usage = Accumulator(2 * experts)  # whether each expert is chosen for a token, then with what strength
        self._each = [Accumulator(size, blocks=blocks, device=device) for _ in range(experts)]
        self._num_tokens = 0

    @property
    def is_finite(self) -> Tensor:
        return torch.stack([one.is_finite for one in self._each]).all()

    def update_(self, num_tokens: int, seen: Sequence[Routed], keep: Tensor | None = None) -> None:
        """Take in what the experts did for N tokens, or for those of them that keep, bool (N,), marks."""
        self.usage.update_(usage_rows(num_tokens, len(self._each), seen), keep)
        self._num_tokens += num_tokens if keep is None else int(keep.sum())
        for one in seen:
            own = None if keep is None else keep.to(one.tokens.device)[one.tokens]
            self._each[one.expert].update_(one.inputs, own)

    def moments(self) -> Moments:
        """Those of all tokens so far, the experts side by side. Ends the accumulation."""
        each = [one.moments() for one in self._each]
        return Moments.joined([one.with_zeros(self._num_tokens - one.count) for one in each])


class Products:
    """Σ x xᵀ of centred rows, of which only tiles from the diagonal on are computed.

    Where pieces of rows are centred about different means, the difference is one more row: nothing is ever subtracted,
    so float32 loses no digits by it. Up to 256 inputs (or in blocks of so many) all is float64.
    """

    def __init__(self, size: int, blocks: int, device: torch.device | str, *, is_small: bool = False) -> None:
        self.size, self.blocks, self.device, self.is_small = size, blocks, device, is_small
        inner = size // blocks
        self.exact = inner <= EXACT_SIZE
        self.tile = max(TILE, inner // 16)
        self._total = (
            self._matrices(torch.float64) if self.exact else None
        )  # (B, n, n); of wide ones no sooner than needed
        self._pending: Tensor | None = None  # (B, n, n) float32, not in the total yet
        self._rows: Tensor | None = None  # not multiplied yet; the first `_num_rows` of them
        self._num_rows = self._num_pending = 0

    def add_(self, centred: Tensor, shift: Tensor) -> None:
        """Take in rows (N, C) and one more (C,)."""
        if self._rows is not None and self._num_rows + len(centred) + 1 > len(self._rows):
            self._multiply_()
        if self._rows is None or len(centred) + 1 > len(self._rows):
            dtype = torch.float64 if self.exact else torch.float32
            self._rows = centred.new_empty(max(GATHERED, len(centred) + 1), self.size, dtype=dtype)
        end = self._num_rows + len(centred)
        self._rows[self._num_rows : end] = centred
        self._rows[end] = shift
        self._num_rows = end + 1

    def matrix(self) -> Tensor:
        """(C, C), or its diagonal blocks (B, n, n); float64, of `is_small` float32 where it was no more until now."""
        self._multiply_()
        self._rows = None
        if self.is_small and self._total is None and self._pending is not None:
            total = self._pending
        else:
            self._fold_()
            total = self._matrices(torch.float64) if self._total is None else self._total
        for i, end in self._tiles():
            total[:, end:, i:end] = total[:, i:end, end:].transpose(1, 2)
        return total[0] if self.blocks == 1 else total

    def _multiply_(self) -> None:
        if self._rows is None or not self._num_rows:
            return
        parts = self._rows[: self._num_rows].view(-1, self.blocks, self.size // self.blocks).transpose(0, 1)
        into = self._total if self.exact else self._pending
        if into is None:
            into = self._pending = self._matrices(torch.float32)
        if len(self._tiles()) == 1:
            into.baddbmm_(parts.transpose(1, 2), parts)
        else:
            for block, part in zip(into, parts, strict=True):
                for i, end in self._tiles():
                    block[i:end, i:].addmm_(part[:, i:end].t(), part[:, i:])
        self._num_pending += self._num_rows
        self._num_rows = 0
        if self._num_pending >= FOLDED:
            self._fold_()

    def _fold_(self) -> None:
        if self._total is None:
            self._total = None if self._pending is None else self._pending.double()
        elif self._pending is not None:
            for block, pending in zip(self._total, self._pending, strict=True):
                for i, end in self._tiles():
                    block[i:end, i:] += pending[i:end, i:]
        self._pending, self._num_pending = None, 0

    def _matrices(self, dtype: torch.dtype) -> Tensor:
        size = self.size // self.blocks
        return torch.zeros(self.blocks, size, size, dtype=dtype, device=self.device)

    def _tiles(self) -> list[tuple[int, int]]:
        inner = self.size // self.blocks
        return [(i, min(i + self.tile, inner)) for i in range(0, inner, self.tile)]
