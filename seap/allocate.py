"""Layer sparsity: how many units each axis keeps, so that together they remove what was asked.

The target is a fraction of all prunable parameters. Every way of spreading it goes through the same water-filling
under caps (at least `min_kv_groups` and `min_channels` stay) and the same rounding, so the realised sparsity is within
one unit of the target, or the run ends with the reason.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from seap.arch import AXIS_NAMES, KV_GROUPS, Arch, Axis, choose_axes
from seap.config import Pruning
from seap.damage import Curves
from seap.errors import UserError
from seap.methods import MEASURED
from seap.score import Scores, unit_scores
from seap.timing import Times
from seap.widths import least_damage, one_width, within_time

Budgets = dict[str, int]  # axis key → units kept


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


def is_protected(layer: int, num_layers: int, options: Pruning) -> bool:
    return layer < options.protect_first or layer >= num_layers - options.protect_last


def least_kept(axis: Axis, options: Pruning) -> int:
    """Fewest units that the options let an axis keep, at most what it has."""
    if axis.name == KV_GROUPS:
        return min(options.min_kv_groups, axis.units)
    least = max(options.min_channels, 1)
    return min(math.ceil(least / options.round_to) * options.round_to, axis.units)


def water_fill(weights: Sequence[float], sizes: Sequence[float], caps: Sequence[float], target: float) -> list[float]:
    """Fractions min(level · weight, cap) whose sizes add up to the target.

    The level is found by raising it from one cap to the next, so it is exact; a target above all caps fills
    all of them.
    """
    order = sorted((cap / weight, i) for i, (weight, cap) in enumerate(zip(weights, caps, strict=True)) if weight > 0)
    full, slope, level = 0.0, sum(w * s for w, s in zip(weights, sizes, strict=True)), math.inf
    for bound, i in order:
        if full + slope * bound >= target:
            level = (target - full) / slope
            break
        full += caps[i] * sizes[i]
        slope -= weights[i] * sizes[i]
    return [min(level * w, cap) if w > 0 else 0.0 for w, cap in zip(weights, caps, strict=True)]


def round_steps(
    wanted: Sequence[float], least: Sequence[int], most: Sequence[int], step: int, total: float
) -> list[int]:
    """Whole numbers near `wanted`, largest remainders first, whose sum is `total` to half a step.

    Each is a multiple of the step within [least, most], or `most` itself.
    """
    kept = [min(max(math.floor(w / step + 1e-9) * step, lo), hi) for w, lo, hi in zip(wanted, least, most, strict=True)]
    while abs(total - sum(kept)) > step / 2:
        sign = 1 if total > sum(kept) else -1
        movable = [i for i in range(len(kept)) if (kept[i] < most[i] if sign > 0 else kept[i] > least[i])]
        if not movable:
            break
        i = max(movable, key=lambda i: (sign * (wanted[i] - kept[i]), -i))
        following = (kept[i] // step + 1) * step if sign > 0 else (math.ceil(kept[i] / step) - 1) * step
        kept[i] = min(max(following, least[i]), most[i])
    return kept


def _spread(axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float) -> Budgets:
    """Budgets by water-filling: whole KV groups first, then channels take up what rounding left."""
    caps = [
        1 - least_kept(axis, options) / axis.units if weight else 0.0
        for axis, weight in zip(axes, weights, strict=True)
    ]
    fractions = water_fill(weights, [axis.params for axis in axes], caps, target)
    heads = [i for i, axis in enumerate(axes) if axis.name == KV_GROUPS]
    channels = [i for i, axis in enumerate(axes) if axis.name != KV_GROUPS]
    best, gap = Budgets(), math.inf
    for head_budgets in _head_choices(axes, heads, fractions, caps, options):
        left = target - _removed([axes[i] for i in heads], head_budgets)
        room = sum(caps[i] * axes[i].params for i in channels)
        budgets = head_budgets | _fit_channels(axes, channels, weights, caps, options, min(max(left, 0.0), room))
        missed = abs(target - _removed(axes, budgets))
        if missed < gap:
            best, gap = budgets, missed
        elif missed > gap or not channels:
            break  # choices come from the nearest outwards
        if gap <= min((axes[i].unit_params * options.round_to for i in channels), default=0) / 2:
            break
    return best


def _head_choices(
    axes: Sequence[Axis], heads: Sequence[int], fractions: Sequence[float], caps: Sequence[float], options: Pruning
) -> Iterator[Budgets]:
    """Budgets of the KV groups, for totals from the nearest to the wanted one outwards."""
    if not heads:
        yield {}
        return
    units = [axes[i].units for i in heads]
    wanted = [axes[i].units * (1 - fractions[i]) for i in heads]
    least = [least_kept(axes[i], options) if caps[i] > 0 else axes[i].units for i in heads]
    totals = sorted(range(sum(least), sum(units) + 1), key=lambda total: abs(total - sum(wanted)))
    for total in totals:
        kept = round_steps(wanted, least, units, 1, total)
        yield {axes[i].key: count for i, count in zip(heads, kept, strict=True)}


def _fit_channels(
    axes: Sequence[Axis],
    channels: Sequence[int],
    weights: Sequence[float],
    caps: Sequence[float],
    options: Pruning,
    target: float,
) -> Budgets:
    """Budgets of the axes whose units are small: those of the largest units first, the others take up what is left."""
    if not channels:
        return {}
    sizes = [axes[i].params for i in channels]
    fractions = water_fill([weights[i] for i in channels], sizes, [caps[i] for i in channels], target)
    unit = max(axes[i].unit_params for i in channels)
    now = [place for place, i in enumerate(channels) if axes[i].unit_params == unit]
    chosen = [axes[channels[place]] for place in now]
    later = [channels[place] for place in range(len(channels)) if place not in now]
    own = target - sum(fractions[place] * sizes[place] for place in range(len(channels)) if place not in now)
    wanted = [axis.units * (1 - fractions[place]) for place, axis in zip(now, chosen, strict=True)]
    least = [least_kept(a, options) if caps[channels[p]] > 0 else a.units for p, a in zip(now, chosen, strict=True)]
    total = sum(axis.units for axis in chosen) - own / unit
    kept = round_steps(wanted, least, [axis.units for axis in chosen], options.round_to, total)
    budgets = {axis.key: count for axis, count in zip(chosen, kept, strict=True)}
    left = target - _removed(chosen, budgets)
    room = sum(caps[i] * axes[i].params for i in later)
    return budgets | _fit_channels(axes, later, weights, caps, options, min(max(left, 0.0), room))


def _removed(axes: Sequence[Axis], budgets: Mapping[str, int]) -> int:
    return sum((axis.units - budgets[axis.key]) * axis.unit_params for axis in axes)


def standardised(axis: Axis, inputs: Tensor) -> Tensor:
    """FLAP's comparison across layers: inputs standardised within the axis, then the mean per unit. (C,) → (U,).

    Of experts a unit is one channel of each that stays, the lowest of all together, then the next ones.
    """
    deviation = inputs.std().clamp_min(torch.finfo(torch.float64).tiny)
    each = unit_scores(axis, (inputs - inputs.mean()) / deviation) / axis.unit_inputs
    if not axis.usage_key:
        return each
    own = each.view(axis.experts, axis.units)
    return (own if axis.kept is None else own[list(axis.kept)]).sort(1).values.mean(0)


def _adaptive(
    axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float, scores: Scores
) -> Budgets:
    """FLAP's AL-AM: one global ranking of standardised scores, each unit at its cost in parameters.

    The lowest are removed until the target is met, except those that their axis must keep. The widths that this gives
    are then rounded as in every allocation, so that they meet the target to the unit.
    """
    ranked = []
    for axis, weight in zip(axes, weights, strict=True):
        if weight == 0:
            continue
        values = torch.sort(standardised(axis, scores[axis.key])).values.tolist()
        removable = axis.units - least_kept(axis, options)
        ranked += [(value, axis) for value in values[:removable]]
    ranked.sort(key=lambda pair: pair[0])
    removed, gone = dict.fromkeys((axis.key for axis in axes), 0), 0
    for _, axis in ranked:
        if gone + axis.unit_params / 2 > target:
            continue
        removed[axis.key] += 1
        gone += axis.unit_params
    shares = [removed[axis.key] / axis.units for axis in axes]
    return _spread(axes, shares, options, target) if any(shares) else {axis.key: axis.units for axis in axes}


def _curve(axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float, scores: Scores) -> Budgets:
    return _spread(axes, weights, options, target)


def grid(axis: Axis, options: Pruning) -> list[int]:
    """Widths that an axis may be given: every number of KV groups, steps of a 64th of the channels."""
    least = least_kept(axis, options)
    step = 1 if axis.name == KV_GROUPS else max(axis.units // 64 // options.round_to, 1) * options.round_to
    return [
        axis.units,
        *[width for width in range(axis.units // step * step, least, -step) if width < axis.units],
        least,
    ]


ALLOCATIONS: dict[str, Callable[[Sequence[Axis], Sequence[float], Pruning, float, Scores], Budgets]] = {
    "uniform": _curve,
    "logistic": _curve,
    "adaptive": _adaptive,
}


def allocate(
    arch: Arch,
    options: Pruning,
    scores: Scores,
    curves: Curves | None = None,
    times: Times | None = None,
    *,
    axes: Sequence[Axis] | None = None,
) -> Budgets:
    """Units that each axis keeps, for the options' sparsity of all prunable parameters (or of measured time).

    curves: measured damage of every axis that may be cut, for `damage` (and `search`, which starts from there). times:
    of every such axis, for the cost in milliseconds. axes: all of the model's, with the experts that stay.

    Raises UserError, naming what stands in the way, when the target can't be met within one unit.
    """
    everything = arch.axes if axes is None else axes
    cut_keys = {axis.key for axis in choose_axes(arch, options.axes)}
    axes = [axis for axis in everything if axis.key in cut_keys]
    dropped = sum(axis.params for axis in arch.axes) - sum(axis.params for axis in everything)
    name = options.resolved().allocate
    if curves is None and name in MEASURED:
        name = "uniform"  # asked before anything is measured, to see whether the target can be met at all
    by_layer = layer_weights(len(arch.layers), options, name)
    weights = [by_layer[axis.layer] for axis in axes]
    target = options.sparsity * arch.prunable_params - dropped
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
        if times is not None:
            return budgets | within_time(free, [grid(axis, options) for axis in free], curves, times, options.sparsity)
        widths = least_damage(free, [grid(axis, options) for axis in free], curves, target)
        shares = [1 - width / axis.units for axis, width in zip(free, widths, strict=True)]
        budgets |= _spread(free, shares, options, target)
    else:
        budgets |= ALLOCATIONS[name](axes, weights, options, target, scores)
    check_met(arch, axes, budgets, options, target)
    return budgets


def check_met(arch: Arch, axes: Sequence[Axis], budgets: Budgets, options: Pruning, target: float) -> None:
    """Raise UserError when rounding left more than one unit between the target and what is removed."""
    unit = max(axis.unit_params * (1 if axis.name == KV_GROUPS else options.round_to) for axis in axes)
    removed = _removed(axes, budgets)
    if abs(removed - target) > unit:
        raise UserError(
            f"sparsity {options.sparsity} can't be met within one unit: {removed / arch.prunable_params:.4f} is the "
            f"nearest with --round-to {options.round_to} and these limits; change the sparsity or --round-to"
        )


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


def check_reachable(
    arch: Arch, axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float
) -> None:
    """Raise UserError when even the least that every axis must keep is more than the target leaves."""
    most = sum((a.units - least_kept(a, options)) * a.unit_params for a, w in zip(axes, weights, strict=True) if w > 0)
    movable = [a for a, w in zip(axes, weights, strict=True) if w > 0 and least_kept(a, options) < a.units]
    slack = min((a.unit_params for a in movable), default=0)
    if target <= most + slack / 2:
        return
    free = [axis for axis, weight in zip(axes, weights, strict=True) if weight > 0] or list(axes)
    tightest = max(free, key=lambda axis: (least_kept(axis, options) / axis.units, -axis.layer))
    reasons = [
        f"{arch.name_of(tightest)} must keep {least_kept(tightest, options)} of {tightest.units}",
        f"every layer keeps at least {options.min_kv_groups} KV groups and {options.min_channels} channels",
    ]
    if options.protect_first or options.protect_last:
        reasons.append(f"{options.protect_first} first and {options.protect_last} last layers are protected")
    if not arch.can_cut_heads:
        reasons.append(f"the heads of {arch.family.model_type} can't be cut: {arch.family.heads_refused}")
    elif len(set(options.axes or AXIS_NAMES)) < len(AXIS_NAMES):
        reasons.append(f"only {', '.join(options.axes or ())} are cut")
    raise UserError(
        f"sparsity {options.sparsity} can't be met: at most {most / arch.prunable_params:.3f} can be removed "
        f"({'; '.join(reasons)}); lower --sparsity, --min-kv-groups, --min-channels or the protected layers"
    )
