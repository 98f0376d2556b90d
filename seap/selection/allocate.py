"""Layer sparsity: how a target is spread over the layers, by a curve, by scores or by measured damage.

The target is a fraction of all prunable parameters, which `seap.budgets` meets within one unit, or the run ends with
the reason. Two ways go by themselves: one width for all layers, and the published code's budgets.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from seap.methods import MEASURED
from seap.models.arch import Arch, choose_axes
from seap.models.axes import KV_GROUPS, Axis
from seap.scoring.score import Scores, unit_scores
from seap.selection.budgets import (
    Budgets,
    check_drop,
    check_met,
    check_query_heads,
    check_reachable,
    is_protected,
    least_kept,
    may_go,
    spread,
    variants,
)
from seap.selection.damage import Costs
from seap.selection.options import Pruning
from seap.selection.whole_layers import layer_budgets
from seap.selection.widths import Choice, Choices, least_damage, one_width


def logistic(x: float) -> float:
    """1 / (1 + e^−x), without overflow; never quite 0, so that no layer is protected by its curve alone."""
    return max(1 / (1 + math.exp(-x)) if x > -700 else 0.0, 1e-300)


def layer_weights(num_layers: int, options: Pruning, allocate: str) -> list[float]:
    """Relative sparsity of each layer, 0 for protected ones.

    logistic: 1 / (1 + e^(−k(x − x0))), x = l/(L−1) for l = 0 … L−1 (SEAP, eq. 15; its Λ is the water level).
    """
    weights = []
    for layer in range(num_layers):
        position = layer / max(num_layers - 1, 1)
        curve = logistic(options.logistic_k * (position - options.logistic_x0))
        weights.append(0.0 if is_protected(layer, num_layers, options) else curve if allocate == "logistic" else 1.0)
    return weights


def standardised(axis: Axis, inputs: Tensor) -> Tensor:
    """FLAP's comparison across layers: inputs standardised within the axis, then the mean per unit. (C,) → (U,)."""
    deviation = inputs.std().clamp_min(torch.finfo(torch.float64).tiny)
    return in_line(axis, (inputs - inputs.mean()) / deviation) / axis.unit_inputs


def in_line(axis: Axis, inputs: Tensor) -> Tensor:
    """Scores of the axis's units as one list over all layers takes them. (C,) → (U,).

    Of experts a unit is one channel of each that stays, the lowest of all together, then the next ones.
    """
    each = unit_scores(axis, inputs)
    if not axis.usage_key:
        return each
    own = each.view(axis.experts, axis.units)
    return (own if axis.kept is None else own[list(axis.kept)]).sort(1).values.mean(0)


def _adaptive(
    axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float, scores: Scores
) -> Budgets:
    """FLAP's AL-AM: one list of standardised scores.

    FLAP's code weighs a head as 512/3 channels, which an integer tensor makes 170; here each unit goes at its own
    parameters.
    """
    return one_list(axes, weights, options, target, {axis.key: standardised(axis, scores[axis.key]) for axis in axes})


def _global(axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float, scores: Scores) -> Budgets:
    """One list of the scores as they are."""
    return one_list(axes, weights, options, target, {axis.key: in_line(axis, scores[axis.key]) for axis in axes})


def one_list(
    axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float, values: Mapping[str, Tensor]
) -> Budgets:
    """One ranking of all units over all layers, each at its cost in parameters. values: axis key → (U,).

    The lowest are removed until the target is met, except those that their axis must keep. The widths that this gives
    are then rounded as in every allocation, so that they meet the target to the unit.
    """
    ranked = []
    for axis, weight in zip(axes, weights, strict=True):
        if weight == 0:
            continue
        ordered = torch.sort(values[axis.key]).values.tolist()
        removable = axis.units - least_kept(axis, options)
        ranked += [(value, axis) for value in ordered[:removable]]
    ranked.sort(key=lambda pair: pair[0])
    removed, gone = dict.fromkeys((axis.key for axis in axes), 0), 0
    for _, axis in ranked:
        if gone + axis.unit_params / 2 > target:
            continue
        removed[axis.key] += 1
        gone += axis.unit_params
    shares = [removed[axis.key] / axis.units for axis in axes]
    return spread(axes, shares, options, target) if any(shares) else {axis.key: axis.units for axis in axes}


def _curve(axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float, scores: Scores) -> Budgets:
    return spread(axes, weights, options, target)


def grid(axis: Axis, options: Pruning, *, may_go: bool = False) -> list[int]:
    """Widths that an axis may be given: every number of KV groups, steps of a 64th of the channels, and 0."""
    least = least_kept(axis, options)
    step = 1 if axis.name == KV_GROUPS else max(axis.units // 64 // options.round_to, 1) * options.round_to
    return [
        axis.units,
        *[width for width in range(axis.units // step * step, least, -step) if width < axis.units],
        least,
        *([0] if may_go else []),
    ]


def by_head(axis: Axis, widths: Sequence[int], options: Pruning) -> list[Choice]:
    """Widths of an axis with every number of query heads that it may keep."""
    return [(own, width) for own in variants(axis, options) for width in widths if width or own.curve_key == own.key]


def _by_damage(axes: Sequence[Axis], choices: Choices, curves: Costs, options: Pruning, target: float) -> Budgets:
    """Budgets of least damage, met within one unit.

    Sub-blocks that go whole at that stay gone, and query heads too, unless they alone are more than the target; of the
    other axes the widths are rounded so that they make up the rest.
    """
    while True:
        chosen = least_damage(choices, curves, target)
        settled = [axis.whole_params - axis.params * (width > 0) for axis, width in chosen]  # of what isn't rounded
        left = target - sum(settled)
        if not any(settled) or left >= -min(axis.unit_params for axis in axes) / 2:
            break
        most = settled.index(max(settled))
        now, width = chosen[most]
        choices = [list(own) for own in choices]
        choices[most] = [(a, w) for a, w in choices[most] if a.heads != now.heads or bool(w) != bool(width)]
    rest = [(axis, width) for axis, width in chosen if width]
    shares = [1 - width / axis.units for axis, width in rest]
    found = {axis.key: 0 for axis, width in chosen if not width}
    found |= {axis.heads_key: axis.heads for axis, _ in chosen if axis.heads_key and options.heads == "query"}
    return found | spread([axis for axis, _ in rest], shares, options, left)


ALLOCATIONS: dict[str, Callable[[Sequence[Axis], Sequence[float], Pruning, float, Scores], Budgets]] = {
    "uniform": _curve,
    "logistic": _curve,
    "adaptive": _adaptive,
    "global": _global,
    "iterative": _global,  # of the order in which units went (`steps.py`)
}


def allocate(
    arch: Arch,
    options: Pruning,
    scores: Scores,
    curves: Costs | None = None,
    *,
    axes: Sequence[Axis] | None = None,
) -> Budgets:
    """Units that each axis keeps, for the options' sparsity of all prunable parameters (of other costs: `within.py`).

    curves: what widths of every axis that may be cut cost, for `damage` (and `search`, which starts from there). axes:
    all of the model's, with the experts that stay.

    Raises UserError, naming what stands in the way, when the target can't be met within one unit.
    """
    if options.resolved().allocate == "whole-layers":
        return layer_budgets(arch, options, scores)
    everything = arch.axes if axes is None else axes
    cut_keys = {axis.key for axis in choose_axes(arch, options.cut_axes)}
    axes = [axis for axis in everything if axis.key in cut_keys]
    dropped = sum(axis.params for axis in arch.axes) - sum(axis.params for axis in everything)
    name = options.resolved().allocate
    if curves is None and name in MEASURED:
        name = "uniform"  # asked before anything is measured, to see whether the target can be met at all
    by_layer = layer_weights(len(arch.layers), options, name)
    weights = [by_layer[axis.layer] for axis in axes]
    target = options.sparsity * arch.prunable_params - dropped
    check_drop(arch, axes, options)
    check_query_heads(arch, axes, options)
    if options.sparsity == 0:
        return {axis.key: axis.units for axis in arch.axes}
    if options.resolved().convention == "seap-reference":
        whole = arch.can_cut_heads and arch.queries_per_group > 1
        cut = [axis for axis in axes if not (whole and axis.name == KV_GROUPS)]
        return {axis.key: axis.units for axis in arch.axes} | reference_budgets(cut, len(arch.layers), options)
    check_reachable(arch, axes, weights, options, target)
    budgets = {axis.key: axis.units for axis in arch.axes}
    if name == "one-width":
        least = [least_kept(axis, options) for axis in axes]
        return budgets | one_width(arch, axes, least, options.round_to, target)
    if curves is not None and name in MEASURED:
        free = [axis for axis, weight in zip(axes, weights, strict=True) if weight > 0]
        grids = [grid(axis, options, may_go=may_go(arch, axis, options)) for axis in free]
        choices = [by_head(axis, widths, options) for axis, widths in zip(free, grids, strict=True)]
        budgets |= _by_damage(free, choices, curves, options, target)
    elif options.drop != "none" or options.heads != "groups":
        return budgets  # what goes whole isn't known yet, but the target can be met
    else:
        budgets |= ALLOCATIONS[name](axes, weights, options, target, scores)
    check_met(arch, axes, budgets, options, target)
    return budgets


def reference_budgets(axes: Sequence[Axis], num_layers: int, options: Pruning) -> Budgets:
    """The published code's budgets, which remove less than the sparsity names: 43.3% of Llama-2-7B at "50%".

    Two first and two last layers are left whole, the mean over the others alone is the sparsity, depth is counted over
    the others, and units are floored. With GQA it leaves attention whole (35.3% of Llama-3-8B goes), and `allocate`
    does the same. Only the removal of every unit of an axis, which it allows, is not followed.
    """
    guard = 2 if num_layers > 4 else 0
    free = range(guard, num_layers - guard)
    depth = {layer: i / max(len(free) - 1, 1) for i, layer in enumerate(free)}
    curve = {layer: logistic(options.logistic_k * (x - options.logistic_x0)) for layer, x in depth.items()}
    level = options.sparsity * len(free) / sum(curve.values())
    shares = {layer: min(level * value, 1.0) for layer, value in curve.items()}
    return {axis.key: max(axis.units - math.floor(axis.units * shares.get(axis.layer, 0.0)), 1) for axis in axes}
