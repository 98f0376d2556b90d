"""Widths of least damage in all: a knapsack over measured curves, within a budget of parameters or of time."""

from collections.abc import Sequence

from seap.arch import Axis
from seap.damage import Curves
from seap.errors import UserError
from seap.knapsack import choose_options
from seap.timing import Times


def least_damage(axes: Sequence[Axis], widths: Sequence[Sequence[int]], curves: Curves, target: float) -> list[int]:
    """A width for each axis, so that at least `target` parameters go (or as many as can), at the least damage."""
    removed = [
        [(axis.units - width) * axis.unit_params for width in kept] for axis, kept in zip(axes, widths, strict=True)
    ]
    return _chosen(axes, widths, curves, removed, min(target, sum(map(max, removed))))


def within_time(
    axes: Sequence[Axis], widths: Sequence[Sequence[int]], curves: Curves, times: Times, share: float
) -> dict[str, int]:
    """Axis key → width, so that at least this share of the axes' measured time goes, at the least damage.

    Raises UserError when even the smallest widths take longer.
    """
    saved = [
        [max(times[axis.key].at([axis.units])[0] - t, 0.0) for t in times[axis.key].at(kept)]
        for axis, kept in zip(axes, widths, strict=True)
    ]
    total = sum(times[axis.key].at([axis.units])[0] for axis in axes)
    if (most := sum(map(max, saved))) < share * total:
        raise UserError(
            f"sparsity {share} of the time can't be met: the smallest widths save {most / total:.3f} of it as measured "
            "here; lower --sparsity, or use --cost params"
        )
    chosen = _chosen(axes, widths, curves, saved, share * total)
    return {axis.key: width for axis, width in zip(axes, chosen, strict=True)}


def _chosen(
    axes: Sequence[Axis],
    widths: Sequence[Sequence[int]],
    curves: Curves,
    removed: Sequence[Sequence[float]],
    target: float,
) -> list[int]:
    damage = [curves[axis.key].at(kept) for axis, kept in zip(axes, widths, strict=True)]
    table = [list(zip(part, costs, strict=True)) for part, costs in zip(removed, damage, strict=True)]
    places = choose_options(table, target)
    return [kept[place] for kept, place in zip(widths, places, strict=True)]
