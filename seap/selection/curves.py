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

so that the damage at all widths is one matrix summed up from its end. Factors are made in float64, products of them
in the dtype of the work. λ is over the mean variance of all inputs here,
of the kept ones where a repair is made.

Errors of different blocks of inputs (and of different experts) count as uncorrelated, and so do those of different
tokens. Where a norm stands behind the consumer, F and the errors are those of `activations/normed.py`.
Shapes: C inputs of the consumer, k of them kept and d removed, O outputs, E experts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from seap.activations.stats import Statistics
from seap.allocation import give_back
from seap.compensation.compensate import Source, weight_of
from seap.models.arch import Arch
from seap.models.axes import KV_GROUPS, Axis
from seap.models.residency import release
from seap.models.shelf import rest
from seap.models.solving import solver_of
from seap.scoring.score import Scores
from seap.selection.blocks import Block, Factored, blocks_of, from_the_end
from seap.selection.damage import Curves, whole_curve
from seap.selection.mask import unit_places
from seap.selection.nested import Nested, Nests

SHARES = tuple(share / 32 for share in range(31, 0, -1))  # of the units, beside the least that must stay


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
    nests: Nests | None = None,
) -> Curves:
    """The damage curve of every axis, each cut alone, in nats per token. step: channels go in multiples of it.

    may_go: keys of the axes that may lose all their units; their curves begin at 0. nests: where what trials of widths
    look at is kept, since its factors are made here.

    sensitivity: axis key → F (O, O) per token. statistics: with second moments.
    """
    curves: Curves = {}
    for axis in axes:
        widths = closed_widths(axis, least[axis.key], step, may_go=axis.curve_key in may_go)
        given = weight_of(arch, axis), statistics, unit_places(axis, scores), sensitivity[axis.key]
        keeps = nests is not None and not axis.usage_key
        give_back()
        damage, nested = solver_of(arch, axis.layer)(_damage_of, axis, *given, widths, compensate, keeps)
        curves[axis.curve_key] = whole_curve(axis, widths, damage)
        if nests is not None and keeps:
            nests.put(axis, nested)
        rest(sensitivity, axis.key)
        release(arch.model, arch.layers[axis.layer].parameters())
    return curves


def _damage_of(
    axis: Axis,
    weight: Tensor,
    statistics: Source,
    places: Tensor,
    sensitivity: Tensor,
    widths: Sequence[int],
    compensate: str,
    keeps: bool,
) -> tuple[list[float], list[Nested]]:
    """Of one axis at these widths, ascending. keeps: what every width is made of too, where it was made."""
    blocks, nested = blocks_of(axis, weight, statistics, places, compensate), list[Nested]()
    into = nested if keeps else None
    damage = damage_at(blocks, sensitivity, widths, has_bias=compensate != "none" and not axis.usage_key, into=into)
    if [*widths[:1]] == [0] and axis.is_normed:  # nothing makes up for it
        blocks = blocks_of(axis, weight, statistics, places, "none")
        damage = [*damage_at(blocks, sensitivity, [0], has_bias=False), *damage[1:]]
    return damage, nested


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


def damage_at(
    blocks: Iterable[Block],
    sensitivity: Tensor,
    widths: Sequence[int],
    *,
    has_bias: bool,
    into: list[Nested] | None = None,
) -> list[float]:
    """½ tr(F (Σ D C Dᵀ + s sᵀ)) of each width. sensitivity: F (O, O) per token.

    has_bias: whether the consumer's bias makes up for the mean error on the rows that a repair is fitted on. into: to
    it the blocks are added, ready for every width.
    """
    information = sensitivity.double()
    spread = information.new_zeros(len(widths))
    shift = information.new_zeros(len(information), len(widths))
    for block in blocks:
        found, kept = block.factored(), block.num_kept(widths)
        spread += _weighed(found, information, block.held_covariance)[kept]
        drift = block.held.mean[block.order] - (block.mean if has_bias else 0.0)
        moved = (found.reach * found.over(drift[:, None])[:, 0]).double()
        for place, first in enumerate(kept):
            shift[:, place] += moved[:, first:].sum(1)
        if into is not None:
            into.append(Nested.of(block, found))
    total = spread + (shift * (information @ shift)).sum(0)
    return [max(float(value), 0.0) / 2 for value in total]


def _weighed(found: Factored, information: Tensor, covariance: Tensor) -> Tensor:
    """(C + 1,): tr(F D C Dᵀ) of every number of inputs kept, of one block; summed in float64."""
    values = information.new_zeros(len(covariance))
    weighed = information.to(found.reach) @ found.reach  # F V
    for rows, spread in found.spread(covariance):
        upto = spread.shape[1]
        both = (spread * (found.reach[:, rows].t() @ weighed[:, :upto])).tril(rows.start)
        values[:upto] += 2 * both.sum(0, dtype=values.dtype)
        values[rows] -= both.diagonal(rows.start).double()  # once, where the others stand for two
    return from_the_end(values)
