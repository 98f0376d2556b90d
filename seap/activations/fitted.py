"""Second moments of the rows that are not held out, from those of all rows: nothing is copied until it is asked for.

A wide consumer's matrix takes half a GB in float64; what asks for all of it, or for a part of it in some order, makes
that alone, some rows at a time. Shapes: C inputs of a consumer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seap.activations.moments import ROWS, Moments, places, sums_between


@dataclass(frozen=True)
class Fitted:
    """What a fit may see whose error is then measured on the held-out rows; of all rows where none is held out."""

    whole: Moments  # of all rows
    without_matrix: Moments

    @classmethod
    def of(cls, whole: Moments) -> Fitted:
        return cls(whole, whole.without_matrix().without_held())

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self.without_matrix.mean

    @property
    def num_blocks(self) -> int:
        return self.whole.num_blocks

    def split(self) -> list[Fitted]:
        """Of each block's inputs."""
        return [Fitted.of(part) for part in self.whole.split()]

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cov(h) of some inputs and others, as `Moments.between`: (r, c) float64."""
        held, count = self.whole.held, self.without_matrix.count
        if held is None or not held.count:
            return self.whole.between(rows, columns)
        assert held.co is not None
        rows, columns = places(rows), places(columns)
        found = sums_between(self.whole.co, rows, columns)
        delta, weight = held.mean - self.mean, count * held.count / self.whole.count
        for into, some in zip(found.split(ROWS), rows.split(ROWS), strict=True):
            into -= held.co.index_select(0, some).index_select(1, columns)
            into.addr_(delta[some], delta[columns], alpha=-weight)
        return found.div_(max(count, 1))
