"""What a token takes, measured on the device at hand (decode): the linears of an axis at widths, what stands beside
them, the reads of the KV cache, the output layer, and what is left.

Decode at batch 1 reads every weight once, and what a width costs is seldom in proportion to it: small or odd widths
gain less. Axes of one shape are measured once. Shapes: B sequences, G KV groups, K head size, D hidden size.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from seap.activations.layerwise import Walk, ran
from seap.environment import clock
from seap.models import modeling_seap
from seap.models.arch import Arch
from seap.models.axes import CHANNELS, KV_GROUPS, Axis, Slice
from seap.models.blocks import BLOCK_OF, blocks_of, cached_tokens, why_whole

REPEATS = 25
MULTIPLES = (1, 8, 16, 32, 64, 128)  # that widths may be rounded to
MEASURED_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1)


@dataclass(frozen=True)
class TimeCurve:
    """Milliseconds at measured widths, ascending in both."""

    widths: tuple[int, ...]
    milliseconds: tuple[float, ...]
    beside: float = 0.0  # what the sub-block takes beside its linears at any width but 0
    read: float = 0.0  # for every unit: its part of the KV cache
    head: float = 0.0  # of a unit's: what one of its query heads takes

    @property
    def units(self) -> int:
        return self.widths[-1]

    def at(self, widths: Sequence[int]) -> list[float]:
        """By linear interpolation; below the least measured width, in proportion to it."""
        import numpy as np

        points, values = (0, *self.widths), (0.0, *self.milliseconds)
        found = np.interp(widths, points, values)
        more = [self.beside + width * self.read if width else 0.0 for width in widths]
        return [float(value) + own for value, own in zip(found, more, strict=True)]

    def slower(self, factor: float) -> "TimeCurve":
        """With linears that take so many times as long."""
        taken = tuple(factor * value for value in self.milliseconds)
        return replace(self, milliseconds=taken, head=factor * self.head)


Times = dict[str, TimeCurve]  # axis key → curve


@torch.inference_mode()
def token_times(arch: Arch, *, context: int, batch: int) -> tuple[Times, float]:
    """Every axis's curve, for a token of each of `batch` sequences, and the milliseconds of what is in none of them.

    Those are what a whole forward pass takes beyond the axes and the output layer: the embedding, the last norm, heads
    that can't be cut. context: tokens in the cache, from which keys and values are read.

    Linears are measured again and again with their weights in the processor's caches. Decoding reads all weights in
    turn, from memory: the curves are as much higher as one pass over all linears takes longer than they say.
    """
    times = axis_times(arch, arch.axes, context=context, batch=batch)
    said = sum(curve.milliseconds[-1] for curve in times.values())
    slower = max(_in_turn(arch, batch) / max(said, 1e-9), 1.0)
    times = {key: curve.slower(slower) for key, curve in times.items()}
    here = next(arch.model.parameters()).device
    ids = torch.ones(batch, 1, dtype=torch.long, device=here)
    whole = _median(lambda: arch.model(ids, use_cache=False), here)
    known = output_milliseconds(arch.model, batch) + sum(
        curve.at([curve.units])[0] - curve.read * curve.units for curve in times.values()
    )
    return times, max(whole - known, 0.0)


@torch.inference_mode()
def output_milliseconds(model: Any, batch: int = 1) -> float:
    """Of the output layer, for a token of each sequence."""
    weight = model.get_output_embeddings().weight
    rows = torch.zeros(batch, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return _median(lambda: linear(rows, weight), weight.device)


@torch.inference_mode()
def axis_times(arch: Arch, axes: Sequence[Axis], *, context: int = 1, batch: int = 1) -> Times:
    """The time curve of every axis."""
    known: dict[tuple[Any, ...], TimeCurve] = {}

    def shape(axis: Axis) -> tuple[Any, ...]:
        """What axes have in common that take the same time."""
        cached = cached_tokens(arch.model.config, axis.layer, context) if axis.name == KV_GROUPS else 0
        return axis.name, axis.units, axis.unit_params, cached, not why_whole(arch, axis)

    for axis in axes:
        own = shape(axis)
        if own not in known:
            widths = sorted({max(round(axis.units * share), 1) for share in MEASURED_SHARES})
            taken = [_milliseconds(arch, axis, _first(axis, width), batch) for width in widths]
            rising = [max(taken[: i + 1]) for i in range(len(taken))]  # a narrower axis is never slower but by noise
            beside = max(_block_milliseconds(arch, axis, batch) - rising[-1], 0.0) if own[-1] else 0.0
            read = _read_milliseconds(arch, axis, own[-2], batch) / axis.units if own[-2] else 0.0
            head = _head_milliseconds(arch, axis, rising[-1], batch) if axis.queries > 1 else 0.0
            known[own] = TimeCurve(tuple(widths), tuple(rising), beside, read, head)
    return {axis.key: known[shape(axis)] for axis in axes}


def _median(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of a call: the median over repeats, after a warm-up."""
    taken = []
    for _ in range(REPEATS + 3):
        started = clock(device)
        run()
        taken.append(clock(device) - started)
    return 1000 * median(taken[3:])


def _in_turn(arch: Arch, batch: int) -> float:
    """Of all linears that axes run through, one after the other."""
    weights = [arch.weight(axis.layer, part.module) for axis in arch.axes for part in axis.slices if not part.values]
    inputs = [torch.zeros(batch, weight.shape[1], dtype=weight.dtype, device=weight.device) for weight in weights]
    pairs = list(zip(inputs, weights, strict=True))
    return _median(lambda: [linear(given, weight) for given, weight in pairs], weights[0].device)


def _read_milliseconds(arch: Arch, axis: Axis, tokens: int, batch: int) -> float:
    """Of attention over so many cached tokens, with all units of an axis; what it takes for one token is elsewhere."""
    weight, size = arch.weight(axis.layer, axis.consumer), arch.head_size
    queries = torch.zeros(batch, axis.units * (axis.unit_inputs // size), 1, size, dtype=weight.dtype)
    queries = queries.to(weight.device)
    cached = queries.new_zeros(batch, axis.units, tokens, size)
    found = [_median(partial(_attend, queries, held), weight.device) for held in (cached, cached[:, :, :1])]
    return max(found[0] - found[1], 0.0)


def _attend(queries: Tensor, cached: Tensor) -> Tensor:
    return scaled_dot_product_attention(queries, cached, cached, enable_gqa=True)


def _block_milliseconds(arch: Arch, axis: Axis, batch: int) -> float:
    """What a layer takes longer for one token, without a cache, than the same layer without the axis's sub-block."""
    walk = Walk.start(arch, [[0]] * batch, batch_tokens=batch, apart=False)
    call, layer = walk.calls[0][axis.layer], arch.layers[axis.layer]
    bare = copy.copy(layer)
    bare._modules = dict(layer._modules)
    modeling_seap.drop_(bare, blocks_of(arch, axis.layer), {BLOCK_OF[axis.name]: 0})
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 3):
        for module, into in zip((layer, bare), taken, strict=True):
            started = clock(walk.hidden[0].device)
            ran(arch, module, walk.hidden[0], call)
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
        taken = sum(_milliseconds(arch, axis, _first(axis, width), tokens) for tokens in (1, 64))
        found[multiple] = 1000 * taken / width
    best = min(found.values())
    return next(multiple for multiple, value in found.items() if value <= 1.02 * best), found


def _first(axis: Axis, width: int) -> Tensor:
    """A mask of the axis's first units; which ones doesn't matter for time."""
    return torch.arange(axis.units) < width


def _head_milliseconds(arch: Arch, axis: Axis, whole: float, batch: int) -> float:
    """Of one query head of one KV group: what all groups take less with one head each, dealt out evenly."""
    alone = (torch.arange(axis.queries) < 1).expand(axis.units, axis.queries)
    return max(whole - _milliseconds(arch, axis, alone, batch), 0.0) / (axis.units * (axis.queries - 1))


def _milliseconds(arch: Arch, axis: Axis, keep: Tensor, tokens: int = 1) -> float:
    """Median over repeats, for so many tokens through the axis's linears cut to a mask of units or (G, Q)."""
    weights = [_cut(arch, axis, part, keep) for part in axis.slices if not part.values]
    inputs = [torch.zeros(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device) for weight in weights]
    taken = []
    for _ in range(REPEATS + 3):
        started = clock(weights[0].device)
        for weight, given in zip(weights, inputs, strict=True):
            linear(given, weight)
        taken.append(clock(weights[0].device) - started)
    return 1000 * median(taken[3:])


def _cut(arch: Arch, axis: Axis, part: Slice, keep: Tensor) -> Tensor:
    """A linear's weight (O, C) as wide as a mask of its axis, bool (units,) or (G, Q)."""
    weight: Tensor = arch.linear(axis.layer, part.module).weight
    cut = weight.index_select(part.dim, part.indices(keep).to(weight.device))
    return (cut.t() if arch.family.transposed else cut).contiguous()
