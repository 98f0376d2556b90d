"""The cheapest set of widths: one width per axis, so that what is removed reaches the target at the least damage.

A multiple-choice knapsack, solved as a mixed integer program by HiGHS (scipy.optimize.milp) to a gap of 1e-4.
"""

from collections.abc import Sequence

import numpy as np

Option = tuple[float, float]  # what is removed, what it costs in damage


def choose_options(options: Sequence[Sequence[Option]], target: float) -> list[int]:
    """The place of the chosen option on each axis: removed parts that add up to `target` or more, least damage.

    Raises ValueError when even the largest options don't reach the target.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if target > sum(max(removed for removed, _ in axis) for axis in options) * (1 + 1e-12):
        raise ValueError(f"target {target:g} is more than all options together")
    sizes = [len(axis) for axis in options]
    removed = np.concatenate([[part for part, _ in axis] for axis in options])
    damage = np.concatenate([[cost for _, cost in axis] for axis in options])
    scale = max(float(target), 1.0)
    one_each = np.repeat(np.eye(len(sizes)), sizes, axis=1)
    found = milp(
        damage / max(damage.max(), 1e-30),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(removed[None] / scale, target / scale, np.inf)],
        integrality=np.ones(len(damage)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4, "time_limit": 60.0},
    )
    assert found.x is not None, found.message
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(np.argmax(found.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)]
