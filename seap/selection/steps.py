"""Units that go in many steps, with new gradients after each: GISP (arXiv 2510.18030, ACL 2026).

At step t of T the units of least score go, in one list over all layers and both axes, until t/T of what the sparsity
asks for is gone; then gradients are measured again, with what is gone at 0. What is gone never comes back, and nothing
is mended. The published run prunes to 70% in 112 steps (7 B) and keeps the models of 20 to 50% that it passes; here
all steps lead to the sparsity that was asked, which is a share of parameters (there of units), and an axis keeps the
least that the options say (there a layer may lose all). Where queries share keys, a unit is a KV group with its query
heads (there single query heads, and KV heads stay). On choices the loss is the right ones' less the wrong ones', of as
many rows as have the tokens of the calibration text together; elsewhere it is the text's.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from seap.models.arch import Arch
from seap.models.axes import Axis, Masks
from seap.scoring.score import Scores, unit_scores
from seap.selection.budgets import least_kept
from seap.selection.options import Pruning

Rescore = Callable[[Masks], Scores]  # of the model without the units that the masks have lost


def removal_order(
    arch: Arch, free: Sequence[Axis], options: Pruning, rescore: Rescore, *, progress: bool = False
) -> Scores:
    """Scores by which one list of all units is the order of their removal: places, the first to go the lowest.

    What stays comes after what goes, by its scores in the last step.
    """
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in arch.axes}
    places = {axis.key: torch.zeros(axis.units, dtype=torch.float64) for axis in arch.axes}
    scores, count = rescore(masks), 0
    steps = options.spent.steps if options.sparsity else 1
    bar = tqdm(range(1, steps + 1), desc="steps", unit="step", disable=not progress, leave=False)
    for step in bar:
        scores = rescore(masks) if step > 1 else scores
        target = step / steps * options.sparsity * arch.prunable_params
        for axis, unit in _lowest(free, masks, scores, options, target):
            count += 1
            places[axis.key][unit] = count
            masks[axis.key][unit] = False
    left = torch.cat([unit_scores(axis, scores[axis.key]) for axis in arch.axes])
    order = torch.empty_like(left)
    order[torch.argsort(left, stable=True)] = torch.arange(count + 1, count + 1 + len(left), dtype=torch.float64)
    for axis, later in zip(arch.axes, order.split([axis.units for axis in arch.axes]), strict=True):
        places[axis.key] = torch.where(masks[axis.key], later, places[axis.key])
    return {axis.key: places[axis.key].repeat_interleave(axis.unit_inputs) / axis.unit_inputs for axis in arch.axes}


def _lowest(
    free: Sequence[Axis], masks: Mapping[str, Tensor], scores: Scores, options: Pruning, target: float
) -> list[tuple[Axis, int]]:
    """The units that go in this step, the lowest first, so that `target` parameters are gone in all.

    A group that would be too much waits for a later step.
    """
    gone = sum(int((~masks[axis.key]).sum()) * axis.unit_params for axis in free)
    spare = {axis.key: int(masks[axis.key].sum()) - least_kept(axis, options) for axis in free}
    smallest = min((axis.unit_params for axis in free), default=0)
    units = [(place, unit) for place, axis in enumerate(free) for unit in masks[axis.key].nonzero().flatten().tolist()]
    values = torch.cat([unit_scores(axis, scores[axis.key])[masks[axis.key]] for axis in free])
    going = []
    for index in torch.argsort(values, stable=True).tolist():
        axis, unit = free[units[index][0]], units[index][1]
        if gone + smallest / 2 > target:
            break
        if spare[axis.key] > 0 and gone + axis.unit_params <= target + smallest / 2:
            going.append((axis, unit))
            spare[axis.key] -= 1
            gone += axis.unit_params
    return going
