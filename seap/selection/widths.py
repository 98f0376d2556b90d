"""Widths of least damage in all: a knapsack over measured curves, within a budget of parameters, memory or time.

And one width for all layers, for engines that know no other.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import KV_GROUPS, Axis
from seap.selection.damage import Costs
from seap.selection.footprint import Footprint
from seap.selection.knapsack import choose_options

Choice = tuple[Axis, int]  # an axis with so many query heads, units kept
Choices = Sequence[Sequence[Choice]]  # per axis, what it may be given


def least_damage(choices: Choices, curves: Costs, target: float) -> list[Choice]:
    """A choice for each axis, so that at least `target` parameters go (or as many as can), at the least damage."""
    removed = [[float(axis.whole_params - width * axis.unit_params) for axis, width in own] for own in choices]
    table = [list(zip(part, _damage(own, curves), strict=True)) for part, own in zip(removed, choices, strict=True)]
    places = choose_options(table, min(target, sum(map(max, removed))))
    return [own[place] for own, place in zip(choices, places, strict=True)]


def _damage(choices: Sequence[Choice], curves: Costs) -> list[float]:
    """What the choices of an axis cost, moved so that the least is 0: slopes may say less."""
    found: list[float] = []
    for key, same in itertools.groupby(choices, key=lambda choice: choice[0].curve_key):
        found += curves[key].at([width for _, width in same])
    return [value - min(found) for value in found]


def within(choices: Choices, curves: Costs, footprint: Footprint, most: float) -> dict[str, int]:
    """Axis key → width (and key of query heads → how many), so that a whole model takes at most so much, at the least
    damage.

    Raises UserError when even the smallest widths take more.
    """
    saved = []
    for own in choices:
        whole, *taken = footprint.taken([(own[0][0].with_heads(own[0][0].queries), own[0][0].units), *own])
        saved.append([max(whole - value, 0.0) for value in taken])
    needed = footprint.of({}) - most
    if (spare := sum(map(max, saved)) - needed) < -1e-9 * footprint.dense:
        raise UserError(
            f"at least {footprint.said(most - spare)} stays with the smallest widths, and {footprint.said(most)} was "
            "asked; ask for less"
        )
    table = [list(zip(part, _damage(own, curves), strict=True)) for part, own in zip(saved, choices, strict=True)]
    places = choose_options(table, min(needed, sum(map(max, saved))))
    chosen = [own[place] for own, place in zip(choices, places, strict=True)]
    heads = {axis.heads_key: axis.heads for axis, _ in chosen if axis.heads < axis.queries}
    return {axis.key: width for axis, width in chosen} | heads


def one_width(arch: Arch, axes: Sequence[Axis], least: Sequence[int], step: int, target: float) -> dict[str, int]:
    """Axis key → units kept, the same in all layers, whose removal is nearest to `target` parameters.

    The KV groups are as near to their share of the target as they can be where the heads still divide the hidden size,
    which many configs demand; channels (in steps) take up the rest. Raises UserError when the layers differ already, or
    nothing nearer than one unit in every layer can be had.
    """
    groups, channels = _alike(axes, least, heads=True), _alike(axes, least, heads=False)
    share = target / sum(axis.params for axis in axes)
    best: tuple[float, int, int] | None = None
    for heads in _whole_heads(arch, groups, share):
        removed = (groups.units - heads) * groups.cost
        width = channels.nearest((target - removed) / channels.cost, step) if channels.cost else 0
        missed = abs(target - removed - (channels.units - width) * channels.cost)
        if best is None or missed < best[0]:
            best = (missed, heads, width)
        if missed <= (channels.cost * step or groups.cost) / 2:
            break
    assert best is not None  # keeping all groups is always among them
    missed, heads, width = best
    if missed > (channels.cost * step if channels.cost else groups.cost):
        raise UserError(
            f"this sparsity can't be met with one width for all layers: the nearest, {heads or 'all'} KV groups and "
            f"{width or 'all'} channels in each, is {missed / arch.prunable_params:.3f} away; change --sparsity, "
            "--round-to or --min-channels"
        )
    return {axis.key: heads if axis.name == KV_GROUPS else width for axis in axes}


@dataclass(frozen=True)
class _Alike:
    """One axis as every layer has it: its units, the fewest that stay, and what one unit costs in all layers."""

    units: int = 0
    least: int = 0
    cost: int = 0

    def nearest(self, removed: float, step: int) -> int:
        """The width nearest to so many units removed: a multiple of the step, or all units."""
        most = min(max(round((self.units - removed) / step) * step, self.least), self.units)
        return self.units if removed <= (self.units - self.units // step * step) / 2 else most


def _alike(axes: Sequence[Axis], least: Sequence[int], *, heads: bool) -> _Alike:
    chosen = [(axis, few) for axis, few in zip(axes, least, strict=True) if (axis.name == KV_GROUPS) == heads]
    if not chosen:
        return _Alike()
    names = sorted({axis.name for axis, _ in chosen})
    if len(names) > 1:
        raise UserError(
            f"--allocate one-width doesn't know layers with {' and '.join(names)} yet; use --allocate uniform"
        )
    found = {(axis.units, few) for axis, few in chosen}
    if len(found) > 1:
        units = ", ".join(str(count) for count in sorted({axis.units for axis, _ in chosen}))
        raise UserError(
            f"--allocate one-width needs layers that are alike, but their {chosen[0][0].name} are {units}; "
            "prune the dense model that this one came from, or if this is it, with --allocate uniform"
        )
    (units_, few_) = found.pop()
    return _Alike(units_, few_, sum(axis.unit_params for axis, _ in chosen))


def _whole_heads(arch: Arch, groups: _Alike, share: float) -> list[int]:
    """Numbers of KV groups from the nearest to their share outwards; `[0]` when heads aren't cut."""
    if not groups.cost:
        return [0]
    size = arch.queries_per_group
    fitting = [n for n in range(groups.least, groups.units) if arch.model.config.hidden_size % (n * size) == 0]
    return sorted([*fitting, groups.units], key=lambda n: abs(n - groups.units * (1 - share)))
