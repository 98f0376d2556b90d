"""Budgets that meet a target: relative sparsities of the axes → units that each keeps, within the options' limits.

Water-filling under caps (at least `min_kv_groups` and `min_channels` stay), then rounding to whole units: what is
removed is within one unit of the target, or an error says what stands in the way.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import ATTENTION, AXIS_NAMES, KV_GROUPS, MLP, Axis
from seap.models.blocks import BLOCK_OF, first_of_kind, why_whole
from seap.selection.options import Pruning

Budgets = dict[str, int]  # axis key → units kept


def is_protected(layer: int, num_layers: int, options: Pruning) -> bool:
    first, last = options.protected(num_layers)
    return layer < first or layer >= num_layers - last


def least_kept(axis: Axis, options: Pruning) -> int:
    """Fewest units that the options let an axis keep, at most what it has."""
    if axis.name == KV_GROUPS:
        return min(options.min_kv_groups, axis.units)
    least = max(options.min_channels, 1)
    return min(math.ceil(least / options.round_to) * options.round_to, axis.units)


def variants(axis: Axis, options: Pruning) -> list[Axis]:
    """An axis with every number of query heads per KV group that the options let it keep, all of them first."""
    if options.heads == "groups":
        return [axis]
    return [axis.with_heads(heads) for heads in range(axis.queries, 0, -1)]


def may_go(arch: Arch, axis: Axis, options: Pruning) -> bool:
    """Whether the options let an axis lose all its units, with its whole sub-block.

    The first attention of each kind of KV cache stays: a cache's length is read from it.
    """
    kind = BLOCK_OF.get(axis.name)
    asked = kind is not None and options.drop in (kind, "both")
    return asked and not why_whole(arch, axis) and not first_of_kind(arch, axis)


def check_drop(arch: Arch, axes: Sequence[Axis], options: Pruning) -> None:
    """Raise UserError where --drop asks for what no layer of this model can lose."""
    if options.drop == "none" or any(may_go(arch, axis, options) for axis in axes):
        return
    kinds = [axis for axis in axes if options.drop in (BLOCK_OF.get(axis.name), "both")]
    reasons = [why for axis in kinds if (why := why_whole(arch, axis))]
    if kinds and not reasons:
        reasons = ["its only attention stays"]
    elif options.drop == ATTENTION and arch.heads_refused:
        reasons = [f"its heads can't be cut: {arch.heads_refused}"]
    elif not kinds:
        reasons = [why_whole(arch, axis) for axis in arch.axes if axis.usage_key and options.drop == MLP]
    why = next(iter(reasons), f"only {', '.join(dict.fromkeys(axis.name for axis in axes))} are cut")
    raise UserError(
        f"--drop {options.drop}: no sub-block of {arch.family.model_type} can go whole: {why}; leave it out"
    )


def check_query_heads(arch: Arch, axes: Sequence[Axis], options: Pruning) -> None:
    """Raise UserError where --heads query asks for query heads that no group has to spare, or that can't be cut."""
    if options.heads != "query" or any(axis.queries > 1 for axis in axes):
        return
    groups = [axis for axis in arch.axes if axis.name == KV_GROUPS]
    why = f"only {', '.join(dict.fromkeys(axis.name for axis in axes))} are cut"
    if not arch.can_cut_heads:
        why = f"the heads of {arch.family.model_type} can't be cut: {arch.heads_refused}"
    elif groups and all(axis.queries == 1 for axis in groups):
        why = "every KV group of this model has one query head, so groups are heads"
    raise UserError(f"--heads query: {why}; leave it out")


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


def spread(axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float) -> Budgets:
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
    return sum(axis.params - budgets[axis.key] * axis.shaped(budgets).unit_params for axis in axes)


def check_reachable(
    arch: Arch, axes: Sequence[Axis], weights: Sequence[float], options: Pruning, target: float
) -> None:
    """Raise UserError when even the least that every axis must keep is more than the target leaves."""
    least = [0 if may_go(arch, axis, options) else least_kept(axis, options) for axis in axes]
    kept = list(zip(axes, weights, least, strict=True))
    most = sum(a.params - fewest * variants(a, options)[-1].unit_params for a, w, fewest in kept if w > 0)
    movable = [a for a, w, fewest in kept if w > 0 and fewest < a.units]
    slack = min((a.unit_params for a in movable), default=0)
    if target <= most + slack / 2:
        return
    free = [axis for axis, weight in zip(axes, weights, strict=True) if weight > 0] or list(axes)
    tightest = max(free, key=lambda axis: (least_kept(axis, options) / axis.units, -axis.layer))
    reasons = [
        f"{arch.name_of(tightest)} must keep {least_kept(tightest, options)} of {tightest.units}",
        f"every layer keeps at least {options.min_kv_groups} KV groups and {options.min_channels} channels",
    ]
    first, last = options.protected(len(arch.layers))
    if first or last:
        reasons.append(f"{first} first and {last} last layers are protected")
    if not arch.can_cut_heads:
        reasons.append(f"the heads of {arch.family.model_type} can't be cut: {arch.heads_refused}")
    elif len(set(options.cut_axes or AXIS_NAMES)) < len(AXIS_NAMES):
        reasons.append(f"only {', '.join(options.cut_axes or ())} are cut")
    raise UserError(
        f"sparsity {options.sparsity} can't be met: at most {most / arch.prunable_params:.3f} can be removed "
        f"({'; '.join(reasons)}); lower --sparsity, --min-kv-groups, --min-channels or the protected layers"
    )


def check_met(arch: Arch, axes: Sequence[Axis], budgets: Budgets, options: Pruning, target: float) -> None:
    """Raise UserError when rounding left more than one unit between the target and what is removed."""
    unit = max(axis.unit_params * (1 if axis.name == KV_GROUPS else options.round_to) for axis in axes)
    removed = _removed(axes, budgets)
    if abs(removed - target) > unit:
        raise UserError(
            f"sparsity {options.sparsity} can't be met within one unit: {removed / arch.prunable_params:.4f} is the "
            f"nearest with --round-to {options.round_to} and these limits; change the sparsity or --round-to"
        )
