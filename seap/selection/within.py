"""Budgets within what a whole model may take: bytes, memory or milliseconds, in place of a share of parameters.

Bytes go with parameters, so a number of bytes is a share of the layers' parameters, met to the unit by every
allocation. What else is counted, allocations by damage choose widths by directly (a knapsack over both curves); of the
others the least sparsity is looked for whose widths fit.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

from seap.errors import UserError
from seap.methods import MEASURED
from seap.models.arch import Arch, choose_axes
from seap.models.axes import KV_GROUPS, Axis
from seap.scoring.score import Scores
from seap.selection.allocate import allocate, by_head, grid
from seap.selection.budgets import Budgets, check_drop, check_query_heads, is_protected, least_kept, may_go, variants
from seap.selection.damage import Costs
from seap.selection.footprint import Footprint
from seap.selection.options import Pruning
from seap.selection.widths import within

HALVINGS = 16  # of a range of sparsities
TRIES = 8  # of sparsities, each a little above the last


def budgets_for(
    arch: Arch,
    options: Pruning,
    scores: Scores,
    curves: Costs | None = None,
    footprint: Footprint | None = None,
    *,
    axes: Sequence[Axis] | None = None,
) -> Budgets:
    """`allocate`, where the options count something else than parameters within the footprint that it may have.

    Raises UserError, with the nearest that can be, where even the least widths take more.
    """
    plain_options = in_params(arch, options, footprint)
    if footprint is None or options.cost == "params" or plain_options.sparsity == 0:
        return allocate(arch, plain_options, scores, curves, axes=axes)
    if plain_options.cost == "params":
        return _by_bytes(arch, options, plain_options, scores, curves, footprint, axes)
    whole = {axis.key: axis.units for axis in arch.axes}
    if footprint.fits(whole, options.sparsity):
        return whole
    everything = arch.axes if axes is None else axes
    free = free_axes(arch, everything, options)
    check_drop(arch, free, options)
    check_query_heads(arch, free, options)
    check_possible(arch, options, footprint, free)
    if options.resolved().allocate not in MEASURED:
        return _by_halving(arch, options, scores, footprint, free, everything)
    if curves is None:  # asked before anything is measured
        return whole
    choices = [by_head(axis, grid(axis, options, may_go=may_go(arch, axis, options)), options) for axis in free]
    return whole | within(choices, curves, footprint, footprint.most(options.sparsity))


def free_axes(arch: Arch, axes: Sequence[Axis], options: Pruning) -> list[Axis]:
    """Those that may be cut."""
    keys = {axis.key for axis in choose_axes(arch, options.cut_axes)}
    return [a for a in axes if a.key in keys and not is_protected(a.layer, len(arch.layers), options)]


def least_of(arch: Arch, free: Sequence[Axis], options: Pruning) -> Budgets:
    """The fewest units that the options let each of them keep."""
    least = {axis.key: 0 if may_go(arch, axis, options) else least_kept(axis, options) for axis in free}
    heads = [variants(axis, options)[-1] for axis in free]
    return least | {axis.heads_key: axis.heads for axis in heads if axis.heads < axis.queries}


def check_possible(arch: Arch, options: Pruning, footprint: Footprint, free: Sequence[Axis]) -> None:
    """Raise UserError where the least widths take more than may be."""
    if options.resolved().allocate == "whole-layers" or any(axis.usage_key for axis in free):
        return  # the one has no widths, the others' experts may go too; their parameters are looked at
    least = least_of(arch, free, options)
    if not footprint.fits(least, options.sparsity):
        raise footprint.refusal(options, footprint.of(least))


def in_params(arch: Arch, options: Pruning, footprint: Footprint | None) -> Pruning:
    """The options with bytes as a share of the layers' parameters, so that rounding doesn't lead beyond the bytes.

    Biases that come with every cut axis are counted, and one unit more, since what goes is met to half of one and a
    search moves half of another. Options that count something else are returned as they are. Raises UserError where
    even the least widths take more.
    """
    if footprint is None or options.cost != "bytes" or options.resolved().allocate == "one-width":
        return options  # one width for all layers comes in steps, among which the one is looked for that fits
    if options.sparsity == 0 or footprint.fits({}, options.sparsity):
        return plain(options, 0.0)
    free = free_axes(arch, arch.axes, options)
    check_possible(arch, options, footprint, free)
    bias = sum(getattr(footprint.curves[axis.key], "bias", 0.0) for axis in free)
    step = max(options.round_to, 1)
    unit = min((axis.unit_params * (1 if axis.name == KV_GROUPS else step) for axis in free), default=0)
    params = (footprint.of({}) + bias - footprint.most(options.sparsity)) / footprint.size + unit
    return plain(options, min(params / arch.prunable_params, most_removed(arch, free, options)))


def most_removed(arch: Arch, free: Sequence[Axis], options: Pruning) -> float:
    """The largest share of the layers' parameters that the options let go."""
    if any(axis.usage_key for axis in free):
        return 1 - 1e-9  # experts may go too
    least = least_of(arch, free, options)
    gone = sum(axis.params - least[axis.key] * axis.shaped(least).unit_params for axis in free)
    return min(gone / arch.prunable_params, 1 - 1e-9)


def _by_bytes(
    arch: Arch,
    options: Pruning,
    wanted: Pruning,
    scores: Scores,
    curves: Costs | None,
    footprint: Footprint,
    axes: Sequence[Axis] | None,
) -> Budgets:
    """The budgets of a share of the parameters, a little more of them where what goes comes in larger units."""
    found = allocate(arch, wanted, scores, curves, axes=axes)
    most = most_removed(arch, free_axes(arch, arch.axes, options), options)
    if curves is None and (options.drop != "none" or options.heads == "query"):  # it isn't known yet what goes
        return found
    for _ in range(TRIES):
        beyond = footprint.of(found) - footprint.most(options.sparsity)
        if beyond <= 0 or any(axis.usage_key for axis in arch.axes):  # of experts, widths don't say which ones go whole
            break
        more = (beyond / footprint.size + 1) / arch.prunable_params
        wanted = replace(wanted, sparsity=min(wanted.sparsity + more, most))
        found = allocate(arch, wanted, scores, curves, axes=axes)
    return found


def plain(options: Pruning, sparsity: float) -> Pruning:
    """The same with this share of the layers' parameters to go."""
    return replace(options, cost="params", target_size=None, target_speed=None, sparsity=sparsity)


def _by_halving(
    arch: Arch,
    options: Pruning,
    scores: Scores,
    footprint: Footprint,
    free: Sequence[Axis],
    axes: Sequence[Axis],
) -> Budgets:
    """The budgets of the least sparsity that fits, of an allocation that knows parameters alone."""

    def tried(sparsity: float) -> Budgets | None:
        """None where the allocation has no widths for just this one."""
        with contextlib.suppress(UserError):
            return allocate(arch, plain(options, sparsity), scores, axes=axes)
        return None

    most, nearest = most_removed(arch, free, options), math.inf
    for place in range(HALVINGS, 0, -1):
        high, found = most * place / HALVINGS, tried(most * place / HALVINGS)
        nearest = min(nearest, math.inf if found is None else footprint.of(found))
        if found is not None and footprint.fits(found, options.sparsity):
            break
    else:
        by = f" by --allocate {options.resolved().allocate}"
        raise footprint.refusal(options, min(nearest, footprint.dense), by)
    assert found is not None
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        made = tried(middle)
        if made is not None and footprint.fits(made, options.sparsity):
            found, high = made, middle
        else:
            low = middle
    return found
