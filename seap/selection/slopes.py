"""What each axis's width is worth where all axes are cut together: one pass forward and back through the cut model.

Curves say what cutting an axis alone costs. Cut together, errors meet: some add up, some cancel. At widths c, with g
the gradient of KL(dense ‖ cut) at a consumer's output and h what that consumer reads, width o in place of c changes KL
to second order by about

    −⟨E[g hᵀ] − E[g] mᵀ, D_o − D_c⟩ + |damage(o) − damage(c)|

D = W − W' being what is missing of the consumer's weight at a width, and m the mean input, for which the bias makes up
(0 where there is none). The first term is exact to first order and holds what all other axes do; the second is the
axis's own curve: its units are nested and reconstruction is a projection, so that the error of the wider one and what
the narrower one adds to it are uncorrelated. With query heads a width is a number of groups and one of heads in each;
where neither set of heads holds the other, each adds its own errors to those of what both keep, m:
2 damage(m) − damage(o) − damage(c).

Shapes: C inputs of the consumer, O outputs, N tokens.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from seap.activations.layerwise import LOGIT_BYTES, finished
from seap.activations.ranks import summed
from seap.allocation import give_back
from seap.models.arch import Arch
from seap.models.axes import Axis
from seap.models.shelf import shelf_for
from seap.models.solving import Solver, solver_of
from seap.scoring.sensitivity import Backward
from seap.selection.blocks import from_the_end
from seap.selection.damage import Curve, Judge, RepairTo, simulated
from seap.selection.nested import Nested, Nests

DESCENT = 2  # times the probe tokens: tokens that slopes are measured on
NEAR = tuple(2 ** (step / 8) for step in range(-8, 9))  # widths, over the one at hand, at which a slope is worked out


@dataclass(frozen=True)
class Slope:
    """KL at other widths of an axis than the one at hand, in nats per token: first order, and its curve as second."""

    widths: tuple[int, ...]  # ascending
    change: tuple[float, ...]  # first order, at these widths
    curve: Curve
    here: int
    caution: float = 1.0  # times the second order
    apart: tuple[Curve, Curve] | None = None  # of another number of query heads: of that at hand, and of the fewer

    def at(self, widths: Sequence[int]) -> list[float]:
        """Changes of KL."""
        own = np.array(self.curve.at([*widths, self.here]))
        second = np.abs(own[:-1] - own[-1])
        if self.apart is not None:
            hand, fewer = self.apart
            both = np.array(fewer.at([min(width, self.here) for width in widths]))
            second = np.maximum(2 * both - own[:-1] - np.array(hand.at([self.here])), 0)
        total = np.interp(widths, self.widths, self.change) + self.caution * second
        return [float(value) for value in total]


def can_descend(axes: Sequence[Axis]) -> bool:
    """Experts' consumers are many small linears, whose gradients aren't taken."""
    return not any(axis.usage_key for axis in axes)


@dataclass(frozen=True)
class Gradient:
    """Of KL per token at an axis's consumer: E[g hᵀ] (O, C) and E[g] (O,), float64."""

    product: Tensor
    mean: Tensor


def gradients_at(
    judge: Judge, axes: Sequence[Axis], budgets: Mapping[str, int], repair_to: RepairTo
) -> Iterator[tuple[Axis, Gradient]]:
    """Of the model with all axes cut to these widths, last layer first.

    What goes is computed too, since its gradient is wanted. Layer by layer both ways, so that a streamed model can be
    descended as well; of several ranks all find the same.
    """
    arch, walk, num_layers = judge.arch, judge.walk, len(judge.arch.layers)
    shelf = shelf_for(arch.model, walk.state_bytes * (num_layers + 1), "hidden states")

    @contextlib.contextmanager
    def cut(layer: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for axis in (axis.shaped(budgets) for axis in axes if axis.layer == layer):
                if budgets[axis.key] < axis.units or axis.heads < axis.queries:
                    stack.enter_context(simulated(arch, axis, *repair_to(axis, budgets[axis.key]), whole=True))
            yield

    walk.hidden = list(judge.states[0])
    back = Backward.of(walk, walk.states(shelf, cut), partial(_ending, judge), shelf=shelf, changed=cut)
    count = float(summed(torch.tensor([float(judge.num_tokens)]), judge.ranks))
    for layer in back.layers(progress=False):
        found = {axis.consumer: axis for axis in axes if axis.layer == layer}
        solver = solver_of(arch, layer) if judge.ranks.size == 1 else Solver()
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for module, inputs, grads in back.through(layer, [*found]):
            sums[module] = solver(_grown, sums.get(module), grads.t() @ inputs, grads.sum(0), stays=True)
        for module, axis in found.items():
            product, mean = sums.pop(module) if module in sums else _nothing(arch, axis)
            yield axis, Gradient(summed(product, judge.ranks) / count, summed(mean, judge.ranks) / count)


def _ending(judge: Judge, index: int, hidden: Tensor) -> Tensor:
    """Of KL, summed over a batch's tokens, at hidden states (B, T, D) after the last layer; at logits, q − p.

    Few rows at a time: there are five copies of the logits looked at together, the most of a whole pruning where
    the vocabulary is large.
    """
    whole, expected = judge.walk.batches[index], judge.expected(index)
    grads: list[Tensor] = []
    step = max(LOGIT_BYTES // (expected[0].numel() * 4), 1)
    for rows in (slice(first, first + step) for first in range(0, len(hidden), step)):
        batch = whole.part(rows)
        with torch.enable_grad():
            leaf = hidden[rows].detach().requires_grad_()
            logits = finished(judge.arch, batch, leaf)
        slope = logits.detach().float().softmax(-1).sub_(expected[rows].exp().to(logits.device))
        slope.mul_(batch.said.to(slope.device)[..., None])
        grads += torch.autograd.grad(logits, [leaf], slope.to(logits.dtype))
    judge.rest(index)
    return torch.cat(grads)


def _grown(before: tuple[Tensor, Tensor] | None, product: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums with one batch's more, in float64."""
    if before is None:
        return product.double(), mean.double()
    return before[0].add_(product), before[1].add_(mean)


def _nothing(arch: Arch, axis: Axis) -> tuple[Tensor, Tensor]:
    """What a rank without rows adds."""
    outputs = arch.weight(axis.layer, axis.consumer).shape[0]
    return torch.zeros(outputs, axis.num_inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)


@dataclass(frozen=True)
class Slopes:
    """What slopes are made with: rows that repairs are fitted on, and the statistics and scores behind the curves."""

    judge: Judge
    axes: Sequence[Axis]
    curves: Mapping[str, Curve]
    nests: Nests

    def at(self, budgets: Mapping[str, int], least: Mapping[str, int], repair_to: RepairTo) -> dict[str, Slope]:
        """Curve key → slope at these widths."""
        found: dict[str, Slope] = {}
        for axis, gradient in gradients_at(self.judge, self.axes, budgets, repair_to):
            found |= self.slopes(axis.shaped(budgets), gradient, budgets[axis.key], least[axis.key])
            give_back()
        return found

    def slopes(self, hand: Axis, found: Gradient, here: int, least: int) -> dict[str, Slope]:
        """Of one axis that stands at a width with the query heads of `hand`, and with other numbers of them."""
        numbers = (hand.with_heads(count) for count in range(hand.queries, 0, -1))
        known = {own.heads: self.curves[own.curve_key] for own in numbers if own.curve_key in self.curves}
        near = {min(max(round(here * share), least), hand.units) for share in NEAR} | {here}
        made, at_hand = {}, 0.0
        for heads in sorted(known, key=lambda count: count != hand.heads):  # that at hand first
            own, curve = hand.with_heads(heads), known[heads]
            none = {0} & {*curve.widths}  # where its whole sub-block may go
            widths = sorted((near if heads == hand.heads else near - {0}) | none)
            has_bias = self.nests.compensate != "none"
            change = solver_of(self.judge.arch, own.layer)(_changes, self.nests.of(own), found, widths, has_bias)
            self.nests.rest(own)
            at_hand = change[widths.index(here)] if heads == hand.heads else at_hand
            apart = None if heads == hand.heads else (known[hand.heads], known[min(heads, hand.heads)])
            moved = tuple(value - at_hand for value in change)
            made[own.curve_key] = Slope(tuple(widths), moved, curve, here, apart=apart)
        return made


def _changes(blocks: Sequence[Nested], found: Gradient, widths: Sequence[int], has_bias: bool) -> list[float]:
    """−⟨E[g hᵀ] − E[g] mᵀ, D⟩ of each width. has_bias: whether it makes up for the mean input m."""
    change = found.mean.new_zeros(len(widths))
    for block, product in zip(blocks, found.product.split(len(blocks[0].order), 1), strict=True):
        gradient = product[:, block.order]
        if has_bias:
            gradient = gradient - torch.outer(found.mean, block.mean)
        change -= first_order(block, gradient)[[block.num_kept(width) for width in widths]]
    told: list[float] = change.tolist()
    return told


def first_order(block: Nested, gradient: Tensor) -> Tensor:
    """(C + 1,): ⟨G, D⟩ of every number of inputs kept, D being what is missing then. gradient: G (O, C)."""
    return from_the_end((block.over(gradient.t()) * block.reach.t()).sum(1, dtype=torch.float64))
