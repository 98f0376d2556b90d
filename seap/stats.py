"""Moments of activations that add up exactly: count, mean, M2 and, if asked for, the co-moment matrix.

Shapes: N rows (tokens), C inputs of a consumer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError
from seap.files import read_tensors, write_tensors


@dataclass
class Moments:
    """Moments of N vectors of size C, in float64.

    mean (C,), m2 (C,) = Σ (h − mean)², and optionally co (C, C) = Σ (h − mean)(h − mean)ᵀ, whose diagonal is m2.
    Updates and merges follow Chan, Golub and LeVeque (1979), so any split of the rows gives the same result up to
    float64 rounding; FLAP's running variance loses its first batch and SEAP's code inherits that.
    """

    count: int
    mean: Tensor
    m2: Tensor
    co: Tensor | None = None

    @classmethod
    def zeros(cls, size: int, *, second: bool = False, device: torch.device | str = "cpu") -> Moments:
        """No rows yet. `second` keeps the co-moment matrix too (C² float64)."""
        zero = torch.zeros(size, dtype=torch.float64, device=device)
        matrix = torch.zeros(size, size, dtype=torch.float64, device=device) if second else None
        return cls(0, zero, zero.clone(), matrix)

    @classmethod
    def of(cls, rows: Tensor, *, second: bool = False) -> Moments:
        """The moments of rows (N, C) of any float dtype."""
        rows = rows.to(torch.float64)
        count = rows.shape[0]
        if count == 0:
            return cls.zeros(rows.shape[1], second=second, device=rows.device)
        mean = rows.mean(0)
        centred = rows - mean
        co = centred.t() @ centred if second else None
        m2 = co.diagonal().clone() if co is not None else centred.square_().sum(0)
        return cls(count, mean, m2, co)

    def add_(self, other: Moments) -> None:
        """Take in the rows that `other` has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        weight = self.count * other.count / total
        self.m2 += other.m2 + weight * delta.square()
        if self.co is not None:
            if other.co is None:
                raise UserError("one of the statistics has second moments and the other hasn't")
            self.co += other.co + weight * torch.outer(delta, delta)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    def update_(self, rows: Tensor) -> None:
        """Take in rows (N, C)."""
        self.add_(Moments.of(rows, second=self.co is not None))

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

    def cpu(self) -> Moments:
        return Moments(self.count, self.mean.cpu(), self.m2.cpu(), None if self.co is None else self.co.cpu())


Statistics = dict[str, Moments]  # axis key, such as layers.3.channels → moments of its consumer's input


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all the parts' rows together. Leaves the parts as they are."""
    merged: Statistics = {}
    for part in parts:
        if merged and part.keys() != merged.keys():
            raise UserError(f"statistics of different axes can't be merged: {sorted(part.keys() ^ merged.keys())[:4]}")
        for key, moments in part.items():
            if key not in merged:
                merged[key] = Moments.zeros(moments.mean.numel(), second=moments.co is not None)
            merged[key].add_(moments.cpu())
    return merged


def save_statistics(path: Path, statistics: Statistics, about: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for key, moments in statistics.items():
        tensors[f"{key}.count"] = torch.tensor(moments.count)
        tensors[f"{key}.mean"] = moments.mean
        tensors[f"{key}.m2"] = moments.m2
        if moments.co is not None:
            tensors[f"{key}.co"] = moments.co
    write_tensors(path, "stats", tensors, about)


def load_statistics(path: Path) -> tuple[Statistics, dict[str, Any]]:
    """Read a statistics file and its metadata."""
    tensors, about = read_tensors(path, "stats")
    keys = [name.removesuffix(".count") for name in tensors if name.endswith(".count")]
    statistics = {
        key: Moments(
            int(tensors[f"{key}.count"]), tensors[f"{key}.mean"], tensors[f"{key}.m2"], tensors.get(f"{key}.co")
        )
        for key in keys
    }
    return statistics, about
