"""The inputs of a consumer as trials of widths see them: block by block, in the order in which their units stay.

Shapes: C inputs of a block, k of them kept and d removed, O outputs, E experts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seap.activations.fitted import Fitted
from seap.activations.moments import Moments, sums_between
from seap.compensation.compensate import FEW_TOKENS, UNTESTED_DAMPING, Source, fitting
from seap.compensation.damped import ROWS, factor_of, invert_, lower_times
from seap.methods import CLOSED_FORMS
from seap.models.axes import Axis


@dataclass(frozen=True)
class Block:
    """Inputs of a consumer whose second moments are known together, in the order in which they stay."""

    weight: Tensor  # (O, C) in the dtype of `products`
    moments: Moments  # of all rows, and of the held-out ones apart where `is_apart`
    is_apart: bool
    order: Tensor  # int64 (C,): from that order to the moments' own
    places: Tensor  # int64 (C,): an input stays at every width above its place
    is_repaired: bool
    products: torch.dtype  # in which what is made of the factor is multiplied: at least float32

    def num_kept(self, widths: Sequence[int]) -> list[int]:
        """How many of the inputs stay at each width."""
        return [kept_at(self.places, width) for width in widths]

    @property
    def mean(self) -> Tensor:
        """(C,) of the rows that a repair is fitted on, in the order in which the inputs stay."""
        return self._fitted.mean[self.order]

    @property
    def held(self) -> Moments:
        """Of the rows that its error is measured on."""
        apart = self.moments.held if self.is_apart else None
        return self.moments if apart is None else apart

    @property
    def _fitted(self) -> Moments | Fitted:
        return Fitted.of(self.moments) if self.is_apart else self.moments

    def factored(self) -> "Factored":
        """With L where what goes is predicted from what stays, else as it is."""
        if not self.is_repaired:
            return Factored(self.weight, None)
        factor = factor_of(lambda: self._fitted.between(self.order, self.order), UNTESTED_DAMPING)
        reach = self.weight @ factor.to(self.products)
        return Factored(reach, invert_(factor).to(self.products))

    @property
    def held_covariance(self) -> Tensor:
        """(C, C) of the held-out rows, in the order in which the inputs stay."""
        found = sums_between(self.held.co, self.order, self.order, dtype=self.products)
        return found.div_(max(self.held.count, 1))


@dataclass(frozen=True)
class Factored:
    """D = V_d (L⁻¹)_d of every width, d being what goes: the last inputs in the order in which they stay."""

    reach: Tensor  # V (O, C)
    inverse: Tensor | None  # L⁻¹ (C, C), lower; None: 1

    def over(self, columns: Tensor) -> Tensor:
        """L⁻¹ M of columns M (C, n)."""
        columns = columns.to(self.reach)
        return columns if self.inverse is None else lower_times(self.inverse, columns)

    def spread(self, covariance: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """L⁻¹ C L⁻ᵀ on and below its diagonal, some rows (n) up to the last of them (n, m) at a time."""
        size = len(covariance)
        for first in range(0, size, ROWS):
            rows, upto = slice(first, first + ROWS), min(first + ROWS, size)
            part = covariance[:upto, :upto].to(self.reach)
            if self.inverse is None:
                yield rows, part[first:]
                continue
            yield rows, self.inverse[rows, :upto] @ part @ self.inverse[:upto, :upto].t()


def kept_at(places: Tensor, width: int) -> int:
    """How many inputs stay at a width, by their places (C,)."""
    return int((places < width).sum())


def from_the_end(values: Tensor) -> Tensor:
    """(C,) → (C + 1,): the sums of the last values, of all of them first, of none last."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def blocks_of(axis: Axis, weight: Tensor, statistics: Source, places: Tensor, compensate: str) -> Iterator[Block]:
    """An axis's inputs block by block. weight (O, C); places (E, U) or (1, G·Q) of `unit_places`."""
    products = torch.promote_types(weight.dtype, torch.float32)
    weight = weight.to(products)
    moments = fitting(axis, statistics)
    parts = moments.split()
    size = weight.shape[1] // len(parts)
    each = places.flatten().repeat_interleave(axis.num_inputs // places.numel()).split(size)
    seen = _tokens_seen(axis, statistics, len(parts))
    for columns, own, place, tokens in zip(weight.split(size, 1), parts, each, seen, strict=True):
        order = torch.sort(place, stable=True).indices
        is_apart = own.held is not None and own.held.count > 0 and bool(own.held.m2.any())
        repaired = compensate in CLOSED_FORMS and tokens >= FEW_TOKENS
        yield Block(columns[:, order], own, is_apart, order, place[order], repaired, products)


def _tokens_seen(axis: Axis, statistics: Source, blocks: int) -> list[float]:
    """Tokens behind each block: of experts, those that are routed to it."""
    if not axis.usage_key:
        return [math.inf] * blocks
    usage = statistics[axis.usage_key]
    seen = (usage.mean[: axis.experts] * usage.count).round()
    return seen.repeat_interleave(blocks // axis.experts).tolist()
