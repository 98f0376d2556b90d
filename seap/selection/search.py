"""Local search over widths: move parameters from one axis to another as long as held-out KL falls.

Damage measured axis by axis takes no account of how cuts work together; here every trial cuts all axes at once. A move
takes units from one axis and gives as many parameters to another; moves are drawn by seed, those that helped before
more often, and become smaller when few help (random local search; Týr-the-Pruner, arXiv 2503.09657, likewise searches
on KL).
"""

import contextlib
import random
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from seap.activations.layerwise import evaluation
from seap.models.axes import Axis
from seap.selection.budgets import Budgets
from seap.selection.damage import Judge, RepairTo, simulated


def divergence_of(judge: Judge, axes: Sequence[Axis], budgets: Mapping[str, int], repair_to: RepairTo) -> float:
    """KL(dense ‖ model with all axes cut to these widths) per token, without surgery."""
    cut = [axis for axis in axes if budgets[axis.key] < axis.units or axis.num_kept < axis.experts]
    with contextlib.ExitStack() as stack:
        for axis in cut:
            stack.enter_context(simulated(judge.arch, axis, *repair_to(axis, budgets[axis.key])))
        return judge.divergence(min((axis.layer for axis in cut), default=len(judge.arch.layers)))


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
    return sum(budgets[axis.key] * axis.unit_params for axis in axes)


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
) -> Budgets:
    """Better budgets than `start` after so many evaluations; `start` if none is better.

    They keep as many parameters, to half of the smallest unit.
    """
    generator = random.Random(seed)
    size, tried = max(axis.params for axis in axes) / 8, {tuple(start.values())}
    weights = {(giver.key, taker.key): 1.0 for giver in axes for taker in axes if giver.key != taker.key}
    by_key = {axis.key: axis for axis in axes}
    drift = min(axis.unit_params * (step if axis.unit_inputs == 1 else 1) for axis in axes) / 2
    with evaluation(judge.arch.model):
        best, least_kl = start, divergence_of(judge, axes, start, repair_to)
        for _ in (bar := tqdm(range(evaluations), desc="search", unit="trial", disable=not progress, leave=False)):
            for _ in range(200):
                pair = generator.choices(list(weights), list(weights.values()))[0]
                budgets = moved(best, by_key[pair[0]], by_key[pair[1]], size * generator.uniform(0.3, 1), least, step)
                if budgets is None or tuple(budgets.values()) in tried:
                    continue
                if abs(_params(axes, budgets) - _params(axes, start)) <= drift:
                    break
            else:
                break
            tried.add(tuple(budgets.values()))
            found = divergence_of(judge, axes, budgets, repair_to)
            better = found < least_kl
            weights[pair] = min(weights[pair] * 2, 8.0) if better else max(weights[pair] * 0.6, 0.1)
            size = min(size * 1.3, max(axis.params for axis in axes) / 4) if better else size * 0.985
            if better:
                best, least_kl = budgets, found
            bar.set_postfix_str(f"KL {least_kl:.4f}")
    return best
