"""Sequential refit: each consumer in turn is fitted to the dense model's stream, on what the pruned model feeds it.

The repairs of `compensate` are fitted on the dense model's activations; in the pruned model the inputs of a later layer
differ. With the masks fixed, each consumer is therefore refitted, first layer first, to the dense model's residual
stream: its target is the dense consumer's output plus the error inherited so far, T = W h + (x_dense − x_pruned), so
that later layers mend what earlier ones left (asymmetric reconstruction: He et al., 2017, arXiv 1707.06168, eq. 5; Li
et al., GPTAQ, 2025). Closed form, shrunk towards the repair W₀ that is there:
W' = W₀ + (C_Th − W₀ C_hh)(C_hh + λI)⁻¹, with λ, and whether to change anything at all, chosen on held-out rows.

Before that, the linears that write the axis are mended too: they read a stream that has drifted, so each W becomes
W · M, where M h_pruned is the best linear guess at h_dense.

In a layer of experts only the attention's consumer is refitted; the experts keep the repairs that they have.

The error is inherited only where the consumer's output is added to the residual stream as it is. Where a norm stands
between (Gemma 2 and 3, OLMo 2) the target is the dense consumer's output alone; a first batch tells which it is.
There each token counts by one over the size of that output, as the norm does, and no bias is fitted (`normed.py`).
Shapes: N tokens, D hidden size (outputs of a consumer), k kept inputs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from seap.activations.layerwise import Walk, input_of, taken
from seap.activations.normed import sizes_of
from seap.activations.ranks import Ranks
from seap.activations.stats import Rows
from seap.allocation import give_back
from seap.compensation.compensate import Repair, Repairs, kept_inputs, weight_of
from seap.compensation.cross import CrossMoments, corrected_inputs, over, refit
from seap.models.arch import Arch
from seap.models.axes import Axis, Masks
from seap.models.modes import evaluation
from seap.models.shelf import Shelf, shelf_for
from seap.models.solving import solver_of
from seap.selection.damage import simulated

COPIES = 8  # of the hidden states that are kept of a layer: before and after it, and what its linears read and write
READ_BYTES = 1 << 30  # inputs of a layer's last consumer that are kept in memory; beyond it the layer is run again


@dataclass(frozen=True)
class DenseRun:
    """One batch in one dense layer."""

    outputs: list[Tensor]  # of all that the layer adds to the stream
    reads: list[Tensor]  # per axis, what the linears that write it read
    after: Tensor  # the layer's output


@dataclass
class Streams:
    """The dense and the pruned model's hidden states of one corpus, side by side, layer after layer.

    Of several ranks each has a part of the corpus; what is fitted is fitted to all of it.
    """

    arch: Arch
    masks: Masks
    walk: Walk  # its hidden states are the dense model's
    pruned: list[Tensor]
    shelf: Shelf  # where a streamed model's are kept
    ranks: Ranks
    repairs: Repairs = field(default_factory=dict)  # of the layer at hand
    is_moved: bool = False  # whether the two may differ
    # per batch, in the layer at hand: the pruned stream before its last consumer, and what that consumer reads
    read: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        arch: Arch,
        masks: Masks,
        rows: Rows,
        *,
        batch_tokens: int,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> "Streams":
        """Before the first layer. rows: token rows, every fifth held out."""
        walk = Walk.start(arch, rows, batch_tokens=batch_tokens, ranks=ranks)
        shelf = shelf_for(arch.model, COPIES * walk.state_bytes, "hidden states")
        streams = cls(arch, masks, walk, [], shelf, ranks)
        walk.hidden = [streams._kept(index, "after1", hidden) for index, hidden in enumerate(walk.hidden)]
        streams.pruned = list(walk.hidden)
        return streams

    def _kept(self, index: int, name: str, value: Tensor) -> Tensor:
        return self.shelf.put(f"{index}.{name}", value) if self.shelf.on_disk else value

    def _each(self) -> Iterator[int]:
        """The batches; what is kept of one rests when the next one's turn comes."""
        for index in range(len(self.walk.batches)):
            yield index
            self.shelf.rest(f"{index}.")

    def refitted(self, layer: int, repairs: Repairs) -> Repairs:
        """The repairs of a layer, refitted, once both streams are past it; nothing is kept of the layers before."""
        self.repairs = dict(repairs)
        self.advance_(layer)
        return self.repairs

    def advance_(self, layer: int) -> None:
        """Mend the layer's linears in the order in which they run, then move both streams past the layer."""
        axes = self.arch.layer_axes(layer)
        fitted = [axis for axis in axes if axis.consumer in self.arch.writers(layer) and not axis.usage_key]
        dense = [self._dense_run(fitted, layer, i) for i in self._each()]
        self.read.clear()
        for place, axis in enumerate(fitted):
            changed = self.is_moved or any(a.key in self.repairs for a in fitted[:place])
            reads = axis.producers_read_alike and self.masks[axis.key].any()  # what is gone whole reads nothing
            if changed and reads:
                self._correct_(axis, axes, [run.reads[place] for run in dense])
            if (changed or axis.key in self.repairs) and (not axis.is_normed or self.masks[axis.key].any()):
                self._refit_(axis, axes, dense)
        if self.is_moved or any(axis.key in self.repairs for axis in axes):
            self.is_moved = True
            with self._cut(axes):
                self.pruned = [self._kept(i, "pruned", self._after(layer, i)) for i in self._each()]
        else:
            self.pruned = [run.after for run in dense]
        self.walk.hidden = [run.after for run in dense]

    def _after(self, layer: int, index: int) -> Tensor:
        """The pruned layer's output: from what its last consumer was seen to read, where that is known."""
        if index not in self.read:
            return self.walk.run(layer, index, self.pruned[index])
        stream, inputs = self.read.pop(index)
        output: Tensor = self.arch.linear(layer, self.arch.writers(layer)[-1])(inputs)
        return stream + output.view_as(stream)  # OPT's MLP sees rows of tokens

    def _dense_run(self, axes: Sequence[Axis], layer: int, index: int) -> DenseRun:
        writers = self.arch.writers(layer)
        outputs: list[list[Tensor]] = [[] for _ in writers]
        reads: list[list[Tensor]] = [[] for _ in axes]
        with contextlib.ExitStack() as stack:
            for module, into in zip(writers, outputs, strict=True):
                stack.enter_context(taken(self.arch.linear(layer, module), into))
            for axis, into in zip(axes, reads, strict=True):
                stack.enter_context(taken(self.arch.linear(layer, axis.producers[0]), into, inputs=True))
            after = self.walk.run(layer, index)
        return DenseRun(
            [
                self._kept(index, f"output{place}", into[0].view(*after.shape[:2], -1))
                for place, into in enumerate(outputs)
            ],
            [self._kept(index, f"read{place}", into[0]) for place, into in enumerate(reads)],
            self._kept(index, f"after{layer % 2}", after),
        )

    def _cut(self, axes: Sequence[Axis]) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for axis in axes:
            keep = kept_inputs(axis, axis.mask_of(self.masks))
            if not keep.all() or axis.key in self.repairs:
                stack.enter_context(simulated(self.arch, axis, keep, self.repairs.get(axis.key)))
        return stack

    def _correct_(self, axis: Axis, axes: Sequence[Axis], expected: Sequence[Tensor]) -> None:
        """Map what the axis's linears read to what the dense ones read, where that helps on held-out rows."""
        solver = solver_of(self.arch, axis.layer)
        sums = [CrossMoments(solver=solver), CrossMoments(solver=solver)]
        with self._cut(axes):
            for index in self._each():
                inputs = input_of(self.walk, axis.layer, axis.producers[0], index, self.pruned[index])
                into = sums[self.walk.held[index]]
                into.update_(self.walk.real(index, inputs), self.walk.real(index, expected[index]))
        fit, held = (over(one, self.ranks) for one in sums)
        found = corrected_inputs(fit, held, self.ranks)
        if found is not None:
            self.repairs[axis.key] = replace(self._start(axis), inputs=found)

    def _start(self, axis: Axis) -> Repair:
        outputs = self.arch.weight(axis.layer, axis.consumer).shape[0]
        return self.repairs.get(axis.key, Repair(torch.zeros(outputs, dtype=torch.float64)))

    def _refit_(self, axis: Axis, axes: Sequence[Axis], dense: Sequence[DenseRun]) -> None:
        """Fit the axis's consumer anew, where that helps on held-out rows."""
        keep = kept_inputs(axis, axis.mask_of(self.masks))
        solver = solver_of(self.arch, axis.layer)
        sums = [CrossMoments(solver=solver, has_means=not axis.is_normed) for _ in range(2)]
        with self._cut(axes):
            for index in self._each():
                inputs, target = self._fitted_to(axis, index, dense[index])
                h = self.walk.real(index, inputs)
                h = h[:, keep.to(h.device)] if h.shape[1] == len(keep) else h  # channels that go are left out already
                sums[self.walk.held[index]].update_(h, self.walk.real(index, target))
        give_back()
        start = self._start(axis)
        fit, held = (over(one, self.ranks) for one in sums)
        better = refit(start, fit, held, weight_of(self.arch, axis).cpu()[:, keep], self.ranks)
        if better is not None:
            self.repairs[axis.key] = replace(better, inputs=start.inputs)

    def _fitted_to(self, axis: Axis, index: int, dense: DenseRun) -> tuple[Tensor, Tensor]:
        """What the axis's consumer reads in the pruned model, and what it should write, for one batch.

        Both over the size of what the dense one writes, where a norm stands behind.
        """
        writers = self.arch.writers(axis.layer)
        place, bias = writers.index(axis.consumer), self.arch.consumer(axis).bias
        earlier: list[Tensor] = []  # what the pruned layer's writers before this one write
        with contextlib.ExitStack() as stack:
            for module in writers[:place]:
                stack.enter_context(taken(self.arch.linear(axis.layer, module), earlier))
            inputs = input_of(self.walk, axis.layer, axis.consumer, index, self.pruned[index])
        whole, pruned, after, *outputs = (
            states.to(inputs.device)
            for states in (self.walk.hidden[index], self.pruned[index], dense.after, *dense.outputs)
        )
        target = outputs[place]
        if _adds_up(whole, outputs, after):
            target = target + whole - pruned
            target = target + sum(a - b.view_as(a) for a, b in zip(outputs, earlier, strict=False))
            kept = sum(known.nbytes for _, known in self.read.values())
            if 0 < place == len(writers) - 1 and (self.shelf.on_disk or kept < READ_BYTES):
                stream = pruned + sum(output.view_as(pruned) for output in earlier)
                self.read[index] = (self._kept(index, "stream", stream), self._kept(index, "inputs", inputs))
        target = target if bias is None else target - bias
        if not axis.is_normed:
            return inputs, target
        size = sizes_of(outputs[place])
        return inputs / size, target / size


def _adds_up(before: Tensor, outputs: Sequence[Tensor], after: Tensor) -> bool:
    """Whether a layer adds its consumers' outputs to its input as they are."""
    if any(output.shape != before.shape for output in outputs):  # more than hidden states goes from layer to layer
        return False
    off = (before.float() + sum(output.float() for output in outputs) - after.float()).norm()
    return bool(off <= 0.02 * after.float().norm())


def refit_layers(
    arch: Arch,
    masks: Masks,
    repairs_of: Callable[[int], Repairs],
    rows: Rows,
    *,
    batch_tokens: int,
    progress: bool,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Repairs:
    """Repairs refitted layer after layer; those of axes left whole are new. rows: token rows, every fifth held out.

    repairs_of: a layer's, asked for in its turn. Matrices come back in float32, mapped from disk where they are much.
    """
    done: Repairs = {}
    outputs = {axis.key: arch.weight(axis.layer, axis.consumer).shape[0] for axis in arch.axes}
    sizes = (outputs[axis.key] * int(kept_inputs(axis, axis.mask_of(masks)).sum()) for axis in arch.axes)
    shelf = shelf_for(arch.model, 4 * (sum(sizes) + sum(size**2 for size in outputs.values())), "repairs")
    with evaluation(arch.model):
        streams = Streams.start(arch, masks, rows, batch_tokens=batch_tokens, ranks=ranks)
        layers = range(len(arch.layers))
        for layer in tqdm(layers, desc="refit", unit="layer", disable=not progress, leave=False):
            found = streams.refitted(layer, repairs_of(layer))
            done |= {key: _laid(shelf, key, repair.as_stored()) for key, repair in found.items()}
            give_back()
    return done


def _laid(shelf: Shelf, key: str, repair: Repair) -> Repair:
    """A repair whose matrices are on a shelf; its files go with it, what is mapped of them when nobody has it."""
    weight, inputs = (
        None if part is None else shelf.put(f"{key}.{name}", part)
        for name, part in (("weight", repair.weight), ("inputs", repair.inputs))
    )
    return replace(repair, weight=weight, inputs=inputs)
