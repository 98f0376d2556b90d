"""What an axis's consumer becomes at every width, from one factor: trials of widths solve nothing anew.

The units that stay at a smaller width are among those at a larger one, so that with the inputs in the order in which
they stay and L Lᵀ = C + λI (`curves.py`) ridge's weight at k inputs is

    W' = W_k − V_d (L⁻¹)_dk    with V = W L

which is one product in float32, where solving for it takes a factor and two of such in float64. λ is over the mean
variance of all inputs here, of the kept ones where a repair is made in the end, and the moments are those of the rows
that aren't held out, on which trials are judged. Not for experts, which have a matrix each.
Shapes: C inputs of a block, k of them kept and d removed, O outputs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from seap.activations.stats import Statistics
from seap.compensation.compensate import Repair, Source, fitting_key, weight_of
from seap.compensation.damped import lower_times
from seap.models.arch import Arch
from seap.models.axes import Axis
from seap.models.shelf import Shelf, shelf_for
from seap.models.solving import solver_of
from seap.scoring.score import Scores
from seap.selection.blocks import Block, Factored, blocks_of, kept_at
from seap.selection.mask import unit_places


@dataclass(frozen=True)
class Nested:
    """A block of a consumer's inputs, in the order in which they stay, ready for every width."""

    order: Tensor  # int64 (C,): from that order to the weight's own
    places: Tensor  # int64 (C,): an input stays at every width above its place
    mean: Tensor  # float64 (C,), in that order
    reach: Tensor  # V (O, C) float32
    inverse: Tensor | None  # L⁻¹ (C, C) float32, lower; None: 1

    @classmethod
    def of(cls, block: Block, found: Factored) -> "Nested":
        inverse = None if found.inverse is None else found.inverse.float()
        return cls(block.order, block.places, block.mean, found.reach.float(), inverse)

    def num_kept(self, width: int) -> int:
        return kept_at(self.places, width)

    def over(self, columns: Tensor) -> Tensor:
        """L⁻¹ M of columns M (C, n)."""
        return columns if self.inverse is None else lower_times(self.inverse, columns.to(self.inverse))

    def missing(self, width: int) -> Tensor:
        """V_d (L⁻¹)_dk (O, k) of a width: what a repair takes from the kept columns."""
        kept = self.num_kept(width)
        if self.inverse is None:
            return self.reach.new_zeros(len(self.reach), kept)
        return self.reach[:, kept:] @ self.inverse[kept:, :kept]


def nested_of(axis: Axis, weight: Tensor, statistics: Source, places: Tensor, compensate: str) -> list[Nested]:
    """All blocks of an axis. weight (O, C); places as of `unit_places`."""
    return [Nested.of(block, block.factored()) for block in blocks_of(axis, weight, statistics, places, compensate)]


def repaired(weight: Tensor, blocks: Sequence[Nested], width: int) -> Repair:
    """Ridge's repair of a consumer's weight (O, C) at a width."""
    size, parts = weight.shape[1] // len(blocks), []
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    for block, columns in zip(blocks, weight.split(size, 1), strict=True):
        kept = block.order[: block.num_kept(width)]
        own, back = torch.sort(kept)
        fitted = (columns[:, kept].float() - block.missing(width))[:, back]
        mean = torch.empty_like(block.mean).index_copy_(0, block.order, block.mean)
        bias += columns.double() @ mean - fitted.double() @ mean[own]
        parts.append(fitted)
    return Repair(bias, torch.cat(parts, 1), "ridge, from one factor")


@dataclass
class Nests:
    """The blocks of every axis that trials look at; on disk where they are much."""

    arch: Arch
    axes: Sequence[Axis]  # with every number of query heads that they may keep
    scores: Scores
    statistics: Statistics
    compensate: str
    known: dict[str, list[Nested]] = field(default_factory=dict)  # by curve key
    shelf: Shelf | None = None

    def of(self, axis: Axis) -> list[Nested]:
        """The blocks of an axis; found when they are asked for first."""
        if axis.curve_key not in self.known:
            given = weight_of(self.arch, axis), self.statistics, unit_places(axis, self.scores), self.compensate
            self.put(axis, solver_of(self.arch, axis.layer)(nested_of, axis, *given))
        return self.known[axis.curve_key]

    def put(self, axis: Axis, blocks: Sequence[Nested]) -> None:
        """Keep what was found of an axis on the way."""
        if self.shelf is None:
            num_bytes = nested_bytes(
                self.arch, self.axes, lambda own: self.statistics.num_blocks(fitting_key(own, self.statistics))
            )
            self.shelf = shelf_for(self.arch.model, num_bytes, "factors of second moments", on_host=True)
        kept = []
        for number, block in enumerate(blocks):
            name = f"{axis.curve_key}.{number}"
            reach = self.shelf.put(f"{name}.reach", block.reach)
            inverse = None if block.inverse is None else self.shelf.put(f"{name}.inverse", block.inverse)
            kept.append(replace(block, reach=reach, inverse=inverse))
        self.known[axis.curve_key] = kept

    def repair(self, axis: Axis, width: int) -> Repair:
        """Ridge's repair of an axis at a width."""
        blocks = self.of(axis)
        found = solver_of(self.arch, axis.layer)(repaired, weight_of(self.arch, axis), blocks, width)
        self.rest(axis)
        return found

    def rest(self, axis: Axis) -> None:
        """Give back the memory of what was read of an axis from disk."""
        if self.shelf is not None:
            self.shelf.rest(f"{axis.curve_key}.")


def nested_bytes(arch: Arch, axes: Iterable[Axis], num_blocks: Callable[[Axis], int]) -> float:
    """What the blocks of these axes take."""
    outputs = {axis.key: arch.weight(axis.layer, axis.consumer).shape[0] for axis in arch.axes}
    each = (axis for axis in axes if not axis.usage_key)
    return sum(4.0 * axis.num_inputs * (axis.num_inputs / num_blocks(axis) + outputs[axis.key]) for axis in each)
