"""The cheapest set of widths: one width per axis, so that what is removed reaches the target at the least damage.

A multiple-choice knapsack. At a price λ of what is removed every axis has its best option by itself; the highest price
that doesn't reach the target bounds the least damage from below, the lowest that does is a solution. Options that cost
more than the gap between the two can't be in a better one (Lagrangian reduced costs), and of the few left HiGHS
chooses (scipy.optimize.milp), to a gap of 1e-3.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Option = tuple[float, float]  # what is removed, what it costs in damage
Numbers = NDArray[np.float64]
GAP = 1e-3
HALVINGS = 100


def choose_options(options: Sequence[Sequence[Option]], target: float) -> list[int]:
    """The place of the chosen option on each axis: removed parts that add up to `target` or more, least damage.

    Raises ValueError when even the largest options don't reach the target.
    """
    if target > sum(max(removed for removed, _ in axis) for axis in options) * (1 + 1e-12):
        raise ValueError(f"target {target:g} is more than all options together")
    removed = [np.array([part for part, _ in axis], dtype=np.float64) for axis in options]
    damage = [np.array([cost for _, cost in axis], dtype=np.float64) for axis in options]
    chosen, price, bound = _at_a_price(removed, damage, target)
    chosen = _improved(removed, damage, chosen, target)
    known = _sum(damage, chosen)
    if known - bound <= GAP * known:
        return chosen
    extra = [d - price * r for r, d in zip(removed, damage, strict=True)]
    places = [np.flatnonzero(cost - cost.min() <= (known - bound) * (1 + 1e-9)) for cost in extra]
    found = _solved(
        [r[own] for r, own in zip(removed, places, strict=True)],
        [d[own] for d, own in zip(damage, places, strict=True)],
        target,
    )
    if found is None:
        return chosen
    better = [int(own[place]) for own, place in zip(places, found, strict=True)]
    return better if _reaches(removed, better, target) and _sum(damage, better) < known else chosen


def _reaches(removed: Sequence[Numbers], chosen: Sequence[int], target: float) -> bool:
    """HiGHS takes a constraint as met that is short by a millionth of it, which a number of bytes or of milliseconds
    isn't."""
    return _sum(removed, chosen) >= target * (1 - 1e-12)


def _sum(values: Sequence[Numbers], chosen: Sequence[int]) -> float:
    return float(sum(own[place] for own, place in zip(values, chosen, strict=True)))


def _at_a_price(removed: Sequence[Numbers], damage: Sequence[Numbers], target: float) -> tuple[list[int], float, float]:
    """The cheapest solution that one price for all axes gives, the price, and the best bound below any solution."""

    def best(price: float) -> list[int]:
        """Of options equally good at this price the one that removes most."""
        costs = [d - price * r for r, d in zip(removed, damage, strict=True)]
        return [int(np.lexsort((-r, cost))[0]) for r, cost in zip(removed, costs, strict=True)]

    low, high = 0.0, 1e-12
    while not _reaches(removed, best(high), target) and high < 1e30:
        low, high = high, high * 4
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _reaches(removed, best(middle), target) else (middle, high)
        if high - low <= 1e-9 * high:
            break
    chosen = best(high)
    if not _reaches(removed, chosen, target):
        chosen = [int(np.argmax(r)) for r in removed]
    bound = _sum(damage, chosen) - high * (_sum(removed, chosen) - target)
    return chosen, high, bound


def _improved(removed: Sequence[Numbers], damage: Sequence[Numbers], start: list[int], target: float) -> list[int]:
    """Without what is removed beyond the target: the one change of an axis that spares most, again and again."""
    chosen = list(start)
    while True:
        spare = _sum(removed, chosen) - target
        gains = [
            np.where(r[place] - r <= spare, d[place] - d, -np.inf)
            for r, d, place in zip(removed, damage, chosen, strict=True)
        ]
        axis = max(range(len(gains)), key=lambda i: float(gains[i].max()))
        if gains[axis].max() <= 0:
            return chosen
        chosen[axis] = int(np.argmax(gains[axis]))


def _solved(removed: Sequence[Numbers], damage: Sequence[Numbers], target: float) -> list[int] | None:
    """The least damage of all sets that reach the target, by integer programming; None where it ran out of time."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(axis) for axis in removed]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))))
    costs, parts, scale = np.concatenate(damage), np.concatenate(removed), abs(float(target)) or 1.0
    with silent():
        found = milp(
            costs / max(costs.max(), 1e-30),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(parts[None] / scale, target / scale, np.inf),
            ],
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP, "time_limit": 10.0},
        )
    if found.x is None:
        return None
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(np.argmax(found.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing that C code prints reaches standard output meanwhile: HiGHS says some things whatever it is told."""
    flush = getattr(ctypes.CDLL(None), "fflush", None) if os.name == "posix" else None
    if flush is None:
        yield
        return
    flush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
