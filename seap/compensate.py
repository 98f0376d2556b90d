"""Compensation: what the kept weights can do about the removed units, in closed form.

bias (FLAP, An et al., 2024, eq. 8): the removed inputs of a consumer are replaced by their mean over the calibration
tokens, b = W[:, removed] · E[h_removed], added to the bias that the consumer may have.
Shapes: C inputs of the consumer, O outputs.
"""

from torch import Tensor

from seap.arch import Arch, Axis
from seap.mask import Masks
from seap.stats import Statistics

Biases = dict[str, Tensor]  # axis key → float64 (O,), to be added to the consumer's bias


def removed_inputs(axis: Axis, mask: Tensor) -> Tensor:
    """Bool (C,): the consumer's inputs that go with the removed units."""
    return (~mask).repeat_interleave(axis.unit_inputs)


def mean_bias(arch: Arch, masks: Masks, statistics: Statistics) -> Biases:
    """The bias of every axis that loses units; axes left whole get none."""
    biases: Biases = {}
    for axis in arch.axes:
        gone = removed_inputs(axis, masks[axis.key])
        if gone.any():
            weight = arch.weight(axis.layer, axis.consumer).detach().cpu()
            biases[axis.key] = weight[:, gone].double() @ statistics[axis.key].mean[gone]
    return biases
