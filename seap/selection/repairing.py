"""How an axis cut to some width is repaired while networks are compared: once for each width, then remembered.

Repairs of a whole model take as much as half of its weights in float64. Of a streamed model they lie on a shelf, in the
dtype that they are computed with in the end, and only those of an axis's latest widths.
"""

from functools import partial

import torch

from seap.activations.stats import Statistics
from seap.compensation.compensate import (
    UNTESTED_DAMPING,
    Compensation,
    Repair,
    can_repair,
    kept_inputs,
    mean_bias,
    nystrom,
    repair_axis,
    ridge,
    weight_of,
)
from seap.methods import Method
from seap.models.arch import Arch
from seap.models.axes import Axis
from seap.models.residency import release, streamed
from seap.models.shelf import shelf_for
from seap.scoring.score import Scores
from seap.selection.damage import Cut, RepairTo
from seap.selection.mask import choose_units

QUICK: dict[str, Compensation] = {
    "ridge": partial(ridge, damping=UNTESTED_DAMPING),
    "bias": mean_bias,
    "nystrom": nystrom,
}
REMEMBERED = 3  # widths of an axis whose repairs a streamed model keeps: the best so far, and those just tried


def repairing(arch: Arch, method: Method, scores: Scores, pooled: Statistics) -> RepairTo:
    """What an axis becomes at a width; each answer is computed once."""
    known: dict[tuple[Axis, int], Cut] = {}

    def found(axis: Axis, width: int) -> Cut:
        keep = kept_inputs(axis, choose_units([axis], scores, {axis.key: width})[axis.key])
        repair = None
        if method.compensate in QUICK and can_repair(axis, method.compensate, keep):
            repair = repair_axis(axis, weight_of(arch, axis), pooled, keep, QUICK[method.compensate])
            release(arch.model, arch.layers[axis.layer].parameters())
        return keep, repair

    def remembered(axis: Axis, width: int) -> Cut:
        if (axis, width) not in known:
            known[axis, width] = found(axis, width)
        return known[axis, width]

    return remembered if streamed(arch.model) is None else _on_a_shelf(arch, found)


def _on_a_shelf(arch: Arch, found: RepairTo) -> RepairTo:
    """The latest answers of each axis, their weights in the dtype of the work."""
    plan = streamed(arch.model)
    assert plan is not None
    most = sum(axis.num_inputs * arch.weight(axis.layer, axis.consumer).shape[0] for axis in arch.axes)
    shelf = shelf_for(arch.model, REMEMBERED * most * torch.empty(0, dtype=plan.dtype).element_size(), "repairs")
    widths: dict[str, dict[int, Cut]] = {}

    def remembered(axis: Axis, width: int) -> Cut:
        own = widths.setdefault(axis.key, {})
        if width in own:
            own[width] = own.pop(width)  # the latest is the last
            return own[width]
        while len(own) >= REMEMBERED:
            oldest = next(iter(own))
            _, repair = own.pop(oldest)
            if repair is not None and repair.weight is not None:
                del shelf[f"{axis.key}.{oldest}"]
        keep, repair = found(axis, width)
        if repair is not None and repair.weight is not None:
            weight = shelf.put(f"{axis.key}.{width}", repair.weight.to(plan.dtype))
            repair = Repair(repair.bias, weight, repair.about)
        own[width] = keep, repair
        return own[width]

    return remembered
