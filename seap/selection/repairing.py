"""How an axis cut to some width is repaired while networks are compared: once for each width, then remembered.

Repairs of a whole model take as much as half of its weights. So only those of an axis's latest widths are kept, in the
dtype that they are computed with in the end; where they are much they lie on disk, but those of the layer at hand.
"""

import itertools
from functools import partial

from seap.activations.stats import Statistics
from seap.allocation import give_back
from seap.compensation.compensate import (
    UNTESTED_DAMPING,
    Compensation,
    Repair,
    can_repair,
    kept_inputs,
    mean_bias,
    nystrom,
    ridge,
    solved_repair,
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
from seap.selection.nested import Nests

QUICK: dict[str, Compensation] = {
    "ridge": partial(ridge, damping=UNTESTED_DAMPING),
    "bias": mean_bias,
    "nystrom": nystrom,
}
REMEMBERED = 2  # widths of an axis whose repairs are kept: the best so far, and that just tried


def repairing(arch: Arch, method: Method, scores: Scores, pooled: Statistics, nests: Nests) -> RepairTo:
    """What an axis becomes at a width."""

    def found(axis: Axis, width: int) -> Cut:
        keep = kept_inputs(axis, axis.mask_of(choose_units([axis], scores, {axis.key: width})))
        repair = None
        if method.compensate == "ridge" and not axis.usage_key and can_repair(axis, "ridge", keep):
            repair = nests.repair(axis, width)
        elif method.compensate in QUICK and can_repair(axis, method.compensate, keep):
            repair = solved_repair(arch, axis, weight_of(arch, axis), pooled, keep, QUICK[method.compensate])
        release(arch.model, arch.layers[axis.layer].parameters())
        return keep, repair

    return _remembered(arch, found)


def _remembered(arch: Arch, found: RepairTo) -> RepairTo:
    """The latest answers of each axis, their weights in the dtype of the work."""
    plan = streamed(arch.model)
    weights = [arch.weight(axis.layer, axis.consumer) for axis in arch.axes]
    dtype = plan.dtype if plan is not None else weights[0].dtype
    most = sum(axis.num_inputs * weight.shape[0] for axis, weight in zip(arch.axes, weights, strict=True))
    shelf = shelf_for(arch.model, REMEMBERED * most * dtype.itemsize, "repairs")
    latest: dict[str, dict[tuple[Axis, int], Cut]] = {}  # by axis key; which experts an axis still has may differ
    names: dict[tuple[Axis, int], str] = {}
    numbers, at = itertools.count(), 0

    def remembered(axis: Axis, width: int) -> Cut:
        nonlocal at
        if axis.layer != at:
            shelf.rest(f"{at}.")
            at = axis.layer
        own, asked = latest.setdefault(axis.key, {}), (axis, width)
        if asked in own:
            own[asked] = own.pop(asked)  # the latest is the last
            return own[asked]
        while len(own) >= REMEMBERED:
            oldest = next(iter(own))
            del own[oldest]
            if oldest in names:
                del shelf[names.pop(oldest)]
        keep, repair = found(axis, width)
        give_back()  # a wide axis's repair leaves a hundred MB lying free
        if repair is not None and repair.weight is not None:
            names[asked] = f"{axis.layer}.repair{next(numbers)}"
            repair = Repair(repair.bias, shelf.put(names[asked], repair.weight.to(dtype)), repair.about)
        own[asked] = keep, repair
        return own[asked]

    return remembered
