"""Search over widths: move parameters from one axis to another as long as held-out KL falls.

Damage known axis by axis takes no account of how cuts work together; here every trial cuts all axes at once. First the
slopes where the widths stand (`slopes.py`) are descended, as sequential quadratic programming would: all widths are
chosen anew by what each change is worth there, with more caution where KL didn't fall. Then all curves are tilted
together (heads against channels, early layers against late ones). Then single moves: units go from one axis and as
many parameters to another; moves are drawn by seed, those that helped before more often, and become smaller when few
help (random local search; Týr-the-Pruner, arXiv 2503.09657, likewise searches on KL).
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from seap.allocation import give_back
from seap.models.axes import KV_GROUPS, QUERY_HEADS, Axis
from seap.models.modes import evaluation
from seap.selection.budgets import Budgets
from seap.selection.damage import Costs, Curve, Judge, RepairTo
from seap.selection.slopes import Slopes

CAUTIONS = (1.0, 2.0, 4.0)  # times the second order of a slope
Allocated = Callable[[Costs], Budgets]  # what widths cost → the cheapest budgets


def divergence_of(judge: Judge, axes: Sequence[Axis], budgets: Mapping[str, int], repair_to: RepairTo) -> float:
    """KL(dense ‖ model with all axes cut to these widths) per token, without surgery."""
    shaped = [axis.shaped(budgets) for axis in axes]
    cut = [a for a in shaped if budgets[a.key] < a.units or a.num_kept < a.experts or a.heads < a.queries]
    return judge.divergence_with(cut, lambda axis: repair_to(axis, budgets[axis.key]))


def moved(
    budgets: Budgets, giver: Axis, taker: Axis, params: float, least: Mapping[str, int], step: int
) -> Budgets | None:
    """Budgets after about `params` parameters have gone from one axis to the other; None where they can't.

    step: multiples in which channels go. What is removed in all stays the same to half a step of the taker.
    """
    grain = {axis.key: 1 if axis.unit_inputs > 1 else step for axis in (giver, taker)}
    units = max(round(params / giver.unit_params / grain[giver.key]), 1) * grain[giver.key]
    units = min(units, (budgets[giver.key] - least[giver.key]) // grain[giver.key] * grain[giver.key])
    gained = round(units * giver.unit_params / taker.unit_params / grain[taker.key]) * grain[taker.key]
    off = abs(units * giver.unit_params - gained * taker.unit_params)
    fits = 0 < gained <= taker.units - budgets[taker.key] and off <= max(giver.unit_params, taker.unit_params) / 2
    if units <= 0 or not fits:
        return None
    return budgets | {giver.key: budgets[giver.key] - units, taker.key: budgets[taker.key] + gained}


def _params(axes: Sequence[Axis], budgets: Mapping[str, int]) -> int:
    return sum(budgets[axis.key] * axis.shaped(budgets).unit_params for axis in axes)


def movable(axes: Sequence[Axis], budgets: Mapping[str, int]) -> dict[str, Axis]:
    """What moves are between, by the key of its budget: units at what they cost with their query heads.

    And the query heads of all groups of a layer, of which each takes one from or gives one to every group.
    """
    found = {}
    for axis in (axis.shaped(budgets) for axis in axes):
        found[axis.key] = axis
        if axis.heads_key in budgets:
            params = budgets[axis.key] * axis.head_params
            found[axis.heads_key] = replace(axis, name=QUERY_HEADS, units=axis.queries, unit_params=params)
    return found


def directions(axes: Sequence[Axis]) -> list[dict[str, float]]:
    """What all curves may be off by together, as a log of a factor for each axis, from −½ to ½: heads against channels,
    late layers against early ones, the middle against the ends."""
    last = max(axis.layer for axis in axes) or 1
    kinds = {axis.key: 0.5 if axis.name == KV_GROUPS else -0.5 for axis in axes}
    depth = {axis.key: axis.layer / last - 0.5 for axis in axes}
    middle = {axis.key: 0.5 - 4 * depth[axis.key] ** 2 for axis in axes}
    return [found for found in (kinds, depth, middle) if len(set(found.values())) > 1]


@dataclass
class Search:
    """The best budgets so far, and what measures others."""

    judge: Judge
    axes: Sequence[Axis]
    repair_to: RepairTo
    best: Budgets
    left: int  # trials
    bar: Any  # of tqdm
    fits: Callable[[Budgets], bool] = lambda budgets: True  # whether they take no more than they may
    least_kl: float = math.inf
    tried: set[tuple[int, ...]] = field(default_factory=set)

    def offer(self, budgets: Budgets) -> bool:
        """Measure budgets; whether they are the best so far."""
        self.tried.add(tuple(budgets.values()))
        found = divergence_of(self.judge, self.axes, budgets, self.repair_to)
        give_back()
        better = found < self.least_kl
        if better:
            self.best, self.least_kl = budgets, found
        self.bar.set_postfix_str(f"KL {self.least_kl:.4f}")
        return better

    def attempt(self, budgets: Budgets) -> bool:
        """A trial of what wasn't tried before."""
        self.left -= 1
        self.bar.update()
        return self.offer(budgets)


def descend_(state: Search, slopes: Slopes, allocated: Allocated, least: Mapping[str, int], steps: int) -> None:
    """So many times: the slopes where the widths stand, and the cheapest widths by them; until KL doesn't fall.

    Slopes come from other rows than those that decide whether KL has fallen, so that they fit no noise of these.
    """
    for _ in range(steps):
        if not state.left:
            return
        found = slopes.at(state.best, least, state.repair_to)
        for caution in CAUTIONS:
            if not state.left:
                return
            budgets = allocated({key: replace(slope, caution=caution) for key, slope in found.items()})
            if tuple(budgets.values()) not in state.tried and state.attempt(budgets):
                break
        else:
            return


def tilt_(state: Search, curves: Mapping[str, Curve], allocated: Allocated, trials: int) -> None:
    """Trials of what the curves' allocation becomes with all curves tilted together, one direction after the other."""
    factors, size = dict.fromkeys((axis.key for axis in state.axes), 0.0), math.log(2)
    numbers = [own for axis in state.axes for own in map(axis.with_heads, range(axis.queries, 0, -1))]
    owners = {own.curve_key: own.key for own in numbers if own.curve_key in curves}
    until = state.left - trials
    while state.left > until and size > 0.1:
        gained = False
        for direction, sign in itertools.product(directions(state.axes), (1, -1)):
            if state.left <= until:
                return
            new = {key: value + sign * size * direction[key] for key, value in factors.items()}
            budgets = allocated({key: curves[key].times(math.exp(new[own])) for key, own in owners.items()})
            if tuple(budgets.values()) in state.tried:
                continue
            if state.attempt(budgets):
                factors, gained = new, True
        size = size if gained else size / 2


def move_(state: Search, least: Mapping[str, int], step: int, generator: random.Random) -> None:
    """Trials of moves from one axis to another, until none are left. What is gone whole stays gone."""
    start = state.best
    axes = [axis for axis in state.axes if start[axis.key]]
    if len(axes) < 2:
        return
    size = max(axis.params for axis in axes) / 8
    by_key = movable(axes, start)
    weights = {(giver, taker): 1.0 for giver in by_key for taker in by_key if giver != taker}
    least = dict.fromkeys(by_key, 1) | dict(least)
    drift = min(axis.unit_params * (step if axis.unit_inputs == 1 else 1) for axis in axes) / 2
    while state.left:
        by_key = movable(axes, state.best)
        for _ in range(200):
            pair = generator.choices(list(weights), list(weights.values()))[0]
            params = size * generator.uniform(0.3, 1)
            budgets = moved(state.best, by_key[pair[0]], by_key[pair[1]], params, least, step)
            if budgets is None or tuple(budgets.values()) in state.tried:
                continue
            if abs(_params(axes, budgets) - _params(axes, start)) <= drift and state.fits(budgets):
                break
        else:
            return
        better = state.attempt(budgets)
        weights[pair] = min(weights[pair] * 2, 8.0) if better else max(weights[pair] * 0.6, 0.1)
        size = min(size * 1.3, max(axis.params for axis in axes) / 4) if better else size * 0.985


def search(
    judge: Judge,
    axes: Sequence[Axis],
    start: Budgets,
    least: Mapping[str, int],
    step: int,
    repair_to: RepairTo,
    *,
    evaluations: int,
    seed: int,
    progress: bool,
    curves: Mapping[str, Curve] | None = None,
    allocated: Allocated | None = None,
    slopes: Slopes | None = None,
    descents: int = 0,
    fits: Callable[[Budgets], bool] = lambda budgets: True,
) -> Budgets:
    """Better budgets than `start` after so many evaluations; `start` if none is better.

    They keep as many parameters, to half of the smallest unit. allocated: budgets from what widths cost, with which the
    slopes are descended and half of the trials that are left then tilt the curves. fits: whether budgets may be chosen.
    """
    with (
        evaluation(judge.arch.model),
        tqdm(total=evaluations, desc="search", unit="trial", disable=not progress, leave=False) as bar,
    ):
        state = Search(judge, axes, repair_to, start, evaluations, bar, fits)
        state.offer(start)
        if allocated is not None and slopes is not None:
            descend_(state, slopes, allocated, least, descents)
        if allocated is not None and curves is not None:
            tilt_(state, curves, allocated, state.left // 2)
        move_(state, least, step, random.Random(seed))
    return state.best
