"""What an axis of some width costs in time, measured on the device at hand: its linears, for one token (decode).

Decode at batch 1 reads every weight once, and what a width costs is seldom in proportion to it: small or odd widths
gain less. Axes of one shape are measured once.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import linear

from seap.activations.layerwise import Walk
from seap.environment import clock
from seap.models import modeling_seap
from seap.models.arch import Arch
from seap.models.axes import CHANNELS, Axis, Slice
from seap.models.blocks import BLOCK_OF, blocks_of

REPEATS = 25
MULTIPLES = (1, 8, 16, 32, 64, 128)  # that widths may be rounded to
MEASURED_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1)


@dataclass(frozen=True)
class TimeCurve:
    """Milliseconds at measured widths, ascending in both."""

    widths: tuple[int, ...]
    milliseconds: tuple[float, ...]
    beside: float = 0.0  # what the sub-block takes beside its linears at any width but 0, where it may go whole

    def at(self, widths: Sequence[int]) -> list[float]:
        """By linear interpolation; below the least measured width, in proportion to it."""
        import numpy as np

        points, values = (0, *self.widths), (0.0, *self.milliseconds)
        found = np.interp(widths, points, values)
        return [float(value) + (self.beside if width else 0.0) for width, value in zip(widths, found, strict=True)]


Times = dict[str, TimeCurve]  # axis key → curve


@torch.inference_mode()
def axis_times(arch: Arch, axes: Sequence[Axis], may_go: Collection[str] = ()) -> Times:
    """The time curve of every axis. may_go: keys of those whose whole sub-block, norm and all, is timed too."""
    known: dict[tuple[str, int, int, bool], TimeCurve] = {}
    for axis in axes:
        shape = _shape(axis, may_go)
        if shape not in known:
            widths = sorted({max(round(axis.units * share), 1) for share in MEASURED_SHARES})
            taken = [_milliseconds(arch, axis, width) for width in widths]
            rising = [max(taken[: i + 1]) for i in range(len(taken))]  # a narrower axis is never slower but by noise
            beside = max(_block_milliseconds(arch, axis) - rising[-1], 0.0) if axis.key in may_go else 0.0
            known[shape] = TimeCurve(tuple(widths), tuple(rising), beside)
    return {axis.key: known[_shape(axis, may_go)] for axis in axes}


def _shape(axis: Axis, may_go: Collection[str]) -> tuple[str, int, int, bool]:
    """What axes have in common that take the same time."""
    return axis.name, axis.units, axis.unit_params, axis.key in may_go


def _block_milliseconds(arch: Arch, axis: Axis) -> float:
    """What a layer takes longer for one token, without a cache, than the same layer without the axis's sub-block."""
    walk = Walk.start(arch, [[0]], batch_tokens=1, apart=False)
    call, layer = walk.calls[0][axis.layer], arch.layers[axis.layer]
    bare = copy.copy(layer)
    bare._modules = dict(layer._modules)
    modeling_seap.drop_(bare, blocks_of(arch, axis.layer), {BLOCK_OF[axis.name]: 0})
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 3):
        for module, into in zip((layer, bare), taken, strict=True):
            started = clock(walk.hidden[0].device)
            module(walk.hidden[0], *call.args, **call.kwargs)
            into.append(clock(walk.hidden[0].device) - started)
    whole, without = (median(part[3:]) for part in taken)
    return 1000 * (whole - without)


@torch.inference_mode()
def best_rounding(arch: Arch, sparsity: float) -> tuple[int, dict[int, float]]:
    """The least multiple of channels whose time per channel is within 2% of the best one's, and each one's time.

    Microseconds per channel, of the first layer's MLP cut to about the target width, summed over one token and a batch
    of 64: a multiple stands for the widths that are multiples of it and of nothing larger.
    """
    axis = next(axis for axis in arch.axes if axis.name == CHANNELS)
    found = {}
    for multiple in [m for m in MULTIPLES if 2 * m <= axis.units]:
        wanted = axis.units * (1 - sparsity)
        width = max(int(wanted / multiple) | 1, 1) * multiple
        width = width if width <= axis.units else max(width - 2 * multiple, multiple)
        taken = sum(_milliseconds(arch, axis, width, tokens) for tokens in (1, 64))
        found[multiple] = 1000 * taken / width
    best = min(found.values())
    return next(multiple for multiple, value in found.items() if value <= 1.02 * best), found


def _milliseconds(arch: Arch, axis: Axis, width: int, tokens: int = 1) -> float:
    """Median over repeats, for so many tokens through the axis's linears cut to a width."""
    weights = [_cut(arch, axis, part, width) for part in axis.slices]
    inputs = [torch.zeros(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device) for weight in weights]
    taken = []
    for _ in range(REPEATS + 3):
        started = clock(weights[0].device)
        for weight, given in zip(weights, inputs, strict=True):
            linear(given, weight)
        taken.append(clock(weights[0].device) - started)
    return 1000 * median(taken[3:])


def _cut(arch: Arch, axis: Axis, part: Slice, width: int) -> Tensor:
    """A linear's weight (O, C) as wide as the first units of its axis; which ones doesn't matter for time."""
    keep = torch.arange(axis.units) < width
    weight: Tensor = arch.linear(axis.layer, part.module).weight
    cut = weight.index_select(part.dim, part.indices(keep).to(weight.device))
    return (cut.t() if arch.family.transposed else cut).contiguous()
