"""Sequential refit: each consumer in turn is fitted to the dense model's stream, on what the pruned model feeds it.

The repairs of `compensate` are fitted on the dense model's activations; in the pruned model the inputs of a later layer
differ. With the masks fixed, each consumer is therefore refitted, first layer first, to the dense model's residual
stream: its target is the dense consumer's output plus the error inherited so far, T = W h + (x_dense − x_pruned), so
that later layers mend what earlier ones left (asymmetric reconstruction: He et al., 2017, arXiv 1707.06168, eq. 5; Li
et al., GPTAQ, 2025). Closed form, shrunk towards the repair W₀ that is there:
W' = W₀ + (C_Th − W₀ C_hh)(C_hh + λI)⁻¹, with λ, and whether to change anything at all, chosen on held-out rows.

The error is inherited only where the consumer's output is added to the residual stream as it is. Where a norm stands
between (Gemma 2 and 3, OLMo 2) the target is the dense consumer's output alone; a first batch tells which it is.
Shapes: N tokens, D hidden size (outputs of a consumer), k kept inputs.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from seap.arch import Arch, Axis
from seap.compensate import Repair, Repairs, kept_inputs, weight_of
from seap.damage import simulated
from seap.damped import solve_damped
from seap.layerwise import Walk, evaluation, input_of, taken
from seap.mask import Masks
from seap.stats import Rows

READ_BYTES = 1 << 30  # inputs of a layer's last consumer that are kept; beyond it the layer is run again
DAMPING = (1e-2, 1e-1, 1.0)  # λ over the mean of the covariance's diagonal


@dataclass
class CrossMoments:
    """Sums of inputs h (k), targets t (D) and their products, centred when read; float64."""

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)  # h, t, hhᵀ, thᵀ, t²

    def update_(self, h: Tensor, t: Tensor) -> None:
        h, t = h.float(), t.float()
        parts = (h.double().sum(0), t.double().sum(0), h.t() @ h, t.t() @ h, t.double().square().sum())
        new = [part.double().cpu() for part in parts]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(h)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sums[0] / self.count, self.sums[1] / self.count

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """C_hh (k, k) and C_Th (D, k)."""
        h, t = self.means
        return self.sums[2] / self.count - torch.outer(h, h), self.sums[3] / self.count - torch.outer(t, h)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """E‖t − W h − b‖²."""
        (h, t), (inner, cross) = self.means, self.centred
        spread = float(self.sums[4]) / self.count - float(t.square().sum())
        explained = ((weight @ inner) * weight).sum() - 2 * (weight * cross).sum()
        return spread + float(explained) + float((t - weight @ h - bias).square().sum())

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        if not other.count:
            return self
        sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        return CrossMoments(self.count + other.count, sums)


def refit(start: Repair, fit: CrossMoments, held: CrossMoments, weight: Tensor) -> Repair | None:
    """The repair nearer to the targets, or None where none is better on held-out rows.

    weight: the kept columns (D, k) of the dense consumer, in place where the repair has none. The repair's bias here is
    the whole bias that the consumer gets on top of the dense one.
    """
    old = weight if start.weight is None else start.weight

    def solved(moments: CrossMoments, damping: float) -> Repair:
        (h, t), (inner, cross) = moments.means, moments.centred
        new = old + solve_damped(inner, cross - old @ inner, damping)
        return Repair(t - new @ h, new, f"sequential {damping:g}")

    if not held.count:
        return solved(fit, DAMPING[-1])
    errors = {}
    for damping in DAMPING:
        tried = solved(fit, damping)
        assert tried.weight is not None
        errors[damping] = held.error(tried.weight, tried.bias)
    best = min(errors, key=lambda damping: errors[damping])
    return solved(fit + held, best) if errors[best] < held.error(old, start.bias) else None


@dataclass
class Streams:
    """The dense and the pruned model's hidden states of one corpus, side by side, layer after layer."""

    arch: Arch
    masks: Masks
    repairs: Repairs
    walk: Walk  # its hidden states are the dense model's
    pruned: list[Tensor]
    # per batch, in the layer at hand: the pruned stream before its last consumer, and what that consumer reads
    read: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def consumers(self) -> tuple[str, str]:
        """In the order in which a layer runs them; both write to the residual stream."""
        return self.arch.family.heads_consumer, self.arch.family.mlp_consumer

    def advance_(self, layer: int) -> None:
        """Refit the layer's consumers in the order in which they run, then move both streams past the layer."""
        batches = range(len(self.walk.batches))
        axes = [axis for axis in self.arch.axes if axis.layer == layer]
        ran = [self._dense_run(layer, i) for i in batches]
        expected, following = [outputs for outputs, _ in ran], [after for _, after in ran]
        self.read.clear()
        for axis in axes:
            touched = any(a.key in self.repairs for a in axes[: axes.index(axis) + 1])
            if touched or any(self.walk.hidden[i] is not self.pruned[i] for i in batches):
                self._refit_(axis, axes, expected, following)
        if any(axis.key in self.repairs for axis in axes) or self.pruned[0] is not self.walk.hidden[0]:
            with self._cut(axes):
                self.pruned = [self._after(layer, i) for i in batches]
        else:
            self.pruned = following
        self.walk.hidden = following

    def _after(self, layer: int, index: int) -> Tensor:
        """The pruned layer's output: from what its last consumer was seen to read, where that is known."""
        if index not in self.read:
            return self.walk.run(layer, index, self.pruned[index])
        stream, inputs = self.read.pop(index)
        output: Tensor = self.arch.linear(layer, self.consumers[-1])(inputs)
        return stream + output

    def _dense_run(self, layer: int, index: int) -> tuple[list[Tensor], Tensor]:
        """What comes out of the dense layer's two consumers, and of the layer."""
        found: list[list[Tensor]] = [[] for _ in self.consumers]
        with contextlib.ExitStack() as stack:
            for module, into in zip(self.consumers, found, strict=True):
                stack.enter_context(taken(self.arch.linear(layer, module), into))
            after = self.walk.run(layer, index)
        return [into[0] for into in found], after

    def _cut(self, axes: Sequence[Axis]) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for axis in axes:
            keep = kept_inputs(axis, self.masks[axis.key])
            if not keep.all() or axis.key in self.repairs:
                stack.enter_context(simulated(self.arch, axis, keep, self.repairs.get(axis.key)))
        return stack

    def _refit_(
        self, axis: Axis, axes: Sequence[Axis], expected: Sequence[Sequence[Tensor]], following: Sequence[Tensor]
    ) -> None:
        keep = kept_inputs(axis, self.masks[axis.key])
        place, bias = self.consumers.index(axis.consumer), self.arch.consumer(axis).bias
        sums = [CrossMoments(), CrossMoments()]
        with self._cut(axes):
            for index, held in enumerate(self.walk.held):
                earlier: list[Tensor] = []
                with taken(self.arch.linear(axis.layer, self.consumers[0]), earlier):
                    inputs = input_of(self.walk, axis.layer, axis.consumer, index, self.pruned[index])
                target = expected[index][place]
                if _adds_up(self.walk.hidden[index], expected[index], following[index]):
                    target = target + self.walk.hidden[index] - self.pruned[index]
                    target = target + sum(expected[index][0] - output for output in earlier)
                    if place and sum(known.nbytes for _, known in self.read.values()) < READ_BYTES:
                        self.read[index] = (self.pruned[index] + sum(earlier), inputs)
                if bias is not None:
                    target = target - bias
                h = self.walk.real(index, inputs)[:, keep.to(target.device)]
                sums[held].update_(h, self.walk.real(index, target))
        weight = weight_of(self.arch, axis)
        start = self.repairs.get(axis.key, Repair(torch.zeros(weight.shape[0], dtype=torch.float64)))
        better = refit(start, sums[0], sums[1], weight[:, keep])
        if better is not None:
            self.repairs[axis.key] = better


def _adds_up(before: Tensor, outputs: Sequence[Tensor], after: Tensor) -> bool:
    """Whether a layer adds its consumers' outputs to its input as they are."""
    off = (before.float() + sum(output.float() for output in outputs) - after.float()).norm()
    return bool(off <= 0.02 * after.float().norm())


def refit_layers(
    arch: Arch, masks: Masks, repairs: Repairs, rows: Rows, *, batch_tokens: int, progress: bool
) -> Repairs:
    """Repairs refitted layer after layer; those of axes left whole are new. rows: token rows, every fifth held out."""
    with evaluation(arch.model):
        walk = Walk.start(arch, rows, batch_tokens=batch_tokens)
        streams = Streams(arch, masks, dict(repairs), walk, list(walk.hidden))
        layers = range(len(arch.layers))
        for layer in tqdm(layers, desc="refit", unit="layer", disable=not progress, leave=False):
            streams.advance_(layer)
    return streams.repairs
