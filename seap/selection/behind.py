"""Layers chosen one after the other, each measured behind those that are pruned already, as Wanda-sp's code does.

The published code (FLAP's repository) runs the text through one layer as it is, cuts that layer, runs the text through
what is left of it, and goes on with what comes out. So its scores are of what the pruned model sees, where `wanda-sp`
takes the dense model's; and they belong to one sparsity, so that every sparsity costs two passes more.
"""

from collections.abc import Mapping, Sequence

from tqdm import tqdm

from seap.activations.calibration import measure_layer
from seap.activations.layerwise import Walk
from seap.activations.stats import Rows, Statistics
from seap.compensation.compensate import kept_inputs
from seap.models.arch import Arch
from seap.models.axes import Axis, Masks
from seap.models.modes import evaluation
from seap.scoring.score import ACTIVATION_SCORES
from seap.selection.damage import simulated_all
from seap.selection.mask import choose_units
from seap.text.options import Calibration


def masks_behind(
    arch: Arch, rows: Rows, score: str, axes: Sequence[Axis], budgets: Mapping[str, int], *, progress: bool = False
) -> Masks:
    """The masks of these budgets, by a score of moments. axes: all of the model's, with the experts that stay."""
    options, masks = Calibration(), Masks()
    with evaluation(arch.model):
        walk = Walk.start(arch, rows, batch_tokens=options.batch_tokens, apart=False)
        layers = range(len(arch.layers))
        for layer in tqdm(layers, desc="layers", unit="layer", disable=not progress, leave=False):
            own, before, found = [axis for axis in axes if axis.layer == layer], list(walk.hidden), Statistics()
            measure_layer(walk, layer, own, options, found, lambda index, hidden: hidden)
            weights = {axis.key: arch.weight(layer, axis.consumer).detach() for axis in own}
            scores = {axis.key: ACTIVATION_SCORES[score](axis, weights[axis.key], found[axis.key]) for axis in own}
            masks |= choose_units(own, scores, budgets)
            keep = {axis.key: kept_inputs(axis, masks[axis.key]) for axis in own}
            cut = [axis for axis in own if not keep[axis.key].all()]
            if cut:
                with simulated_all(arch, cut, keep, {}):
                    walk.hidden = [walk.run(layer, index, hidden) for index, hidden in enumerate(before)]
    return masks
