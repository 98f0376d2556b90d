"""Damage curves in closed form: what cutting one axis to a width costs, from moments alone.

With F the Fisher information at the consumer's output, per token, and e the error that is left there after
reconstruction, on held-out rows:

    damage(axis, width) = ½ E[eᵀ F e] = ½ tr(F · E[e eᵀ])   (Amari, 1998: KL to second order)

e = (W − W') h − b is linear in the inputs h, so that its second moments are theirs: E[e eᵀ] = D C Dᵀ + s sᵀ, with
D = W − W', C the covariance of the held-out inputs and s the mean error. Nothing is run.

The units kept at a smaller width are among those kept at a larger one. So with the inputs in the order in which they
stay, one Cholesky factor L of C + λI serves every width. Of W' = W_k + W_d L_dk L_kk⁻¹ the error is that of a trailing
part: [−L_dk L_kk⁻¹, I] = L_dd (L⁻¹)_d, hence D = V_d (L⁻¹)_d with V = W L, and

    tr(F D C Dᵀ) = Σ_{i,j ∈ d} (Vᵀ F V)_ij (L⁻¹ C L⁻ᵀ)_ij

so that the damage at all widths is one matrix summed up from its end. λ is over the mean variance of all inputs here,
of the kept ones where a repair is made.

Errors of different blocks of inputs (and of different experts) count as uncorrelated, and so do those of different
tokens. Where a norm stands behind the consumer (Gemma 2 and 3, OLMo 2), F differs from token to token with the output
itself, and the mean says too much.
Shapes: C inputs of the consumer, k of them kept and d removed, O outputs, E experts.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seap.activations.moments import Moments
from seap.activations.stats import Statistics
from seap.compensation.compensate import FEW_TOKENS, UNTESTED_DAMPING, Source, fitting, weight_of
from seap.compensation.damped import factor_damped
from seap.methods import CLOSED_FORMS
from seap.models.arch import Arch
from seap.models.axes import KV_GROUPS, Axis
from seap.models.residency import release
from seap.models.solving import solver_of
from seap.scoring.score import Scores
from seap.selection.damage import Curves, whole_curve
from seap.selection.mask import unit_places

SHARES = tuple(share / 32 for share in range(31, 0, -1))  # of the units, beside the least that must stay


@dataclass(frozen=True)
class Block:
    """Inputs of a consumer whose second moments are known together, in the order in which they stay."""

    weight: Tensor  # (O, C) float64
    fit: Moments  # what a repair is fitted on
    held: Moments  # what its error is measured on
    order: Tensor  # int64 (C,): from that order to the moments' own
    places: Tensor  # int64 (C,): an input stays at every width above its place
    is_repaired: bool

    def num_kept(self, widths: Sequence[int]) -> list[int]:
        """How many of the inputs stay at each width."""
        return [int((self.places < width).sum()) for width in widths]

    def factored(self) -> "Factored":
        """With L where what goes is predicted from what stays, else as it is."""
        if not self.is_repaired:
            return Factored(self.weight, None)
        factor = factor_damped(self.fit.covariance[self.order][:, self.order], UNTESTED_DAMPING)
        return Factored(self.weight @ factor, factor)


@dataclass(frozen=True)
class Factored:
    """D = V_d (L⁻¹)_d of every width, d being what goes: the last inputs in the order in which they stay."""

    reach: Tensor  # V (O, C)
    factor: Tensor | None  # L (C, C), lower; None: 1

    def over(self, columns: Tensor) -> Tensor:
        """L⁻¹ M of columns M (C, n)."""
        if self.factor is None:
            return columns
        return torch.linalg.solve_triangular(self.factor, columns, upper=False)


def from_the_end(values: Tensor) -> Tensor:
    """(C,) → (C + 1,): the sums of the last values, of all of them first, of none last."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def closed_curves(
    arch: Arch,
    axes: Sequence[Axis],
    least: Mapping[str, int],
    step: int,
    scores: Scores,
    statistics: Statistics,
    sensitivity: Mapping[str, Tensor],
    compensate: str,
    *,
    may_go: Collection[str] = (),
) -> Curves:
    """The damage curve of every axis, each cut alone, in nats per token. step: channels go in multiples of it.

    may_go: keys of the axes that may lose all their units; their curves begin at 0.

    sensitivity: axis key → F (O, O) per token. statistics: with second moments.
    """
    curves: Curves = {}
    for axis in axes:
        widths = closed_widths(axis, least[axis.key], step, may_go=axis.curve_key in may_go)
        given = weight_of(arch, axis), statistics, unit_places(axis, scores), sensitivity[axis.key]
        damage = solver_of(arch, axis.layer)(_damage_of, axis, *given, widths, compensate)
        curves[axis.curve_key] = whole_curve(axis, widths, damage)
        release(arch.model, [sensitivity[axis.key], *arch.layers[axis.layer].parameters()])
    return curves


def _damage_of(
    axis: Axis,
    weight: Tensor,
    statistics: Source,
    places: Tensor,
    sensitivity: Tensor,
    widths: Sequence[int],
    compensate: str,
) -> list[float]:
    """Of one axis at these widths, ascending."""
    blocks = blocks_of(axis, weight, statistics, places, compensate)
    damage = damage_at(blocks, sensitivity, widths, has_bias=compensate != "none" and not axis.usage_key)
    if [*widths[:1]] == [0] and axis.is_normed:  # nothing makes up for it
        blocks = blocks_of(axis, weight, statistics, places, "none")
        damage = [*damage_at(blocks, sensitivity, [0], has_bias=False), *damage[1:]]
    return damage


def closed_widths(axis: Axis, least: int, step: int, *, may_go: bool = False) -> list[int]:
    """Widths below the whole to work out: every number of KV groups up to 16, else shares of the units; and 0.

    With fewer query heads all groups aren't the whole, and are worked out too.
    """
    none = [0] if may_go else []
    if axis.curve_key != axis.key:
        return [*closed_widths(axis.with_heads(axis.queries), least, step), axis.units]
    if axis.name == KV_GROUPS and axis.units <= 16:
        return [*none, *range(least, axis.units)]
    shares = {max(round(axis.units * share / step) * step, least) for share in SHARES}
    return [*none, *sorted(width for width in shares | {least} if width < axis.units)]


def blocks_of(axis: Axis, weight: Tensor, statistics: Source, places: Tensor, compensate: str) -> Iterator[Block]:
    """An axis's inputs block by block. weight (O, C); places (E, U) or (1, G·Q) of `unit_places`."""
    weight = weight.double()
    moments = fitting(axis, statistics[axis.key])
    parts = moments.split()
    size = weight.shape[1] // len(parts)
    each = places.flatten().repeat_interleave(axis.num_inputs // places.numel()).split(size)
    seen = _tokens_seen(axis, statistics, len(parts))
    for columns, own, place, tokens in zip(weight.split(size, 1), parts, each, seen, strict=True):
        order = torch.sort(place, stable=True).indices
        is_apart = own.held is not None and own.held.count > 0 and bool(own.held.m2.any())
        fit, held = (own.without_held(), own.held) if is_apart else (own, own)
        assert held is not None
        repaired = compensate in CLOSED_FORMS and tokens >= FEW_TOKENS
        yield Block(columns[:, order], fit, held, order, place[order], repaired)


def _tokens_seen(axis: Axis, statistics: Source, blocks: int) -> list[float]:
    """Tokens behind each block: of experts, those that are routed to it."""
    if not axis.usage_key:
        return [math.inf] * blocks
    usage = statistics[axis.usage_key]
    seen = (usage.mean[: axis.experts] * usage.count).round()
    return seen.repeat_interleave(blocks // axis.experts).tolist()


def damage_at(blocks: Iterable[Block], sensitivity: Tensor, widths: Sequence[int], *, has_bias: bool) -> list[float]:
    """½ tr(F (Σ D C Dᵀ + s sᵀ)) of each width. sensitivity: F (O, O) per token.

    has_bias: whether the consumer's bias makes up for the mean error on the rows that a repair is fitted on.
    """
    information = sensitivity.double()
    spread = information.new_zeros(len(widths))
    shift = information.new_zeros(len(information), len(widths))
    for block in blocks:
        found, kept = block.factored(), block.num_kept(widths)
        spread += _weighed(found, information, block.held.covariance[block.order][:, block.order])[kept]
        drift = (block.held.mean - block.fit.mean if has_bias else block.held.mean)[block.order]
        moved = found.reach * found.over(drift[:, None])[:, 0]
        for place, first in enumerate(kept):
            shift[:, place] += moved[:, first:].sum(1)
    total = spread + (shift * (information @ shift)).sum(0)
    return [max(float(value), 0.0) / 2 for value in total]


def _weighed(found: Factored, information: Tensor, covariance: Tensor) -> Tensor:
    """(C + 1,): tr(F D C Dᵀ) of every number of inputs kept, of one block."""
    product = found.over(found.over(covariance).t())
    product.mul_(found.reach.t() @ (information @ found.reach))
    return from_the_end(product.diagonal() + 2 * product.triu(1).sum(1))
