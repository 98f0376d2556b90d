"""Moments of activations that add up exactly: count, mean, M2 and, if asked for, the co-moment matrix.

A task's statistics hold the moments of every axis and the token rows that they were measured on, so that a later stage
can measure something else on the same text. With co-moments, a fifth of the rows is also kept apart, as held-out text.

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
    held: Moments | None = None  # of the held-out rows, which all the others include

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
        co = _products(centred) if second else None
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
            self.held = self.held or Moments.zeros(self.mean.numel(), second=other.held.co is not None)
            self.held.add_(other.held)
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

    @property
    def covariance(self) -> Tensor:
        """Cov(h) (C, C), divided by the count."""
        assert self.co is not None, "measured without second moments"
        return self.co / max(self.count, 1)

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
            co = self.co - held.co - weight * torch.outer(delta, delta)
        return Moments(count, mean, self.m2 - held.m2 - weight * delta.square(), co)

    def weighted(self, weight: float) -> Moments:
        """As if every row had been seen `weight` times: what a mixture of texts is made of. Counts are rounded."""
        held = None if self.held is None else self.held.weighted(weight)
        co = None if self.co is None else self.co * weight
        return Moments(round(self.count * weight), self.mean.clone(), self.m2 * weight, co, held)

    def copy(self) -> Moments:
        """One that can be added to without changing this one."""
        copied = Moments.zeros(self.mean.numel(), second=self.co is not None, device=self.mean.device)
        copied.add_(self)
        return copied

    def cpu(self) -> Moments:
        held = None if self.held is None else self.held.cpu()
        return Moments(self.count, self.mean.cpu(), self.m2.cpu(), None if self.co is None else self.co.cpu(), held)


EXACT_SIZE = 256  # inputs up to which products are float64


def _products(centred: Tensor) -> Tensor:
    """XᵀX (C, C) of float64 rows (N, C); for many inputs in float32, twice as fast, on values that are centred."""
    if centred.shape[1] <= EXACT_SIZE:
        return centred.t() @ centred
    single = centred.float()
    return (single.t() @ single).double()


Rows = tuple[tuple[int, ...], ...]  # token ids, one text (or one packed sequence) a row


class Statistics(dict[str, Moments]):
    """Axis key, such as layers.3.channels → moments of its consumer's input; and the token rows measured."""

    def __init__(self, moments: Mapping[str, Moments] | None = None, rows: Rows = ()) -> None:
        super().__init__(moments or {})
        self.rows = rows

    @property
    def has_second_moments(self) -> bool:
        return all(moments.co is not None for moments in self.values())


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all the parts' rows together. Leaves the parts as they are."""
    merged = Statistics()
    for part in parts:
        merged.rows += part.rows
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
        tensors |= _tensors_of(key, moments)
    if statistics.rows:
        tensors["rows"] = torch.tensor([token for row in statistics.rows for token in row], dtype=torch.int32)
        tensors["row_lengths"] = torch.tensor([len(row) for row in statistics.rows], dtype=torch.int32)
    write_tensors(path, "stats", tensors, about)


def _tensors_of(key: str, moments: Moments) -> dict[str, Tensor]:
    tensors = {f"{key}.count": torch.tensor(moments.count), f"{key}.mean": moments.mean, f"{key}.m2": moments.m2}
    if moments.co is not None:
        tensors[f"{key}.co"] = moments.co
    return tensors if moments.held is None else tensors | _tensors_of(f"held.{key}", moments.held)


def _moments_from(tensors: Mapping[str, Tensor], key: str) -> Moments:
    held = _moments_from(tensors, f"held.{key}") if f"held.{key}.count" in tensors else None
    count = int(tensors[f"{key}.count"])
    return Moments(count, tensors[f"{key}.mean"], tensors[f"{key}.m2"], tensors.get(f"{key}.co"), held)


def load_statistics(path: Path) -> tuple[Statistics, dict[str, Any]]:
    """Read a statistics file and its metadata."""
    tensors, about = read_tensors(path, "stats")
    keys = [name.removesuffix(".count") for name in tensors if name.endswith(".count") and not name.startswith("held.")]
    rows: Rows = ()
    if "rows" in tensors:
        pieces = tensors["rows"].split(tensors["row_lengths"].tolist())
        rows = tuple(tuple(piece.tolist()) for piece in pieces)
    return Statistics({key: _moments_from(tensors, key) for key in keys}, rows), about
