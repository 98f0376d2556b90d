"""First-order scores: how much the task's loss moves, to first order, when a unit's weights become 0.

A weight scores |w · g|, with g the gradient of the loss over the whole text: the sum over the text comes before the
absolute value. A unit scores the sum over all its weights, biases left out:

- `taylor`: element-wise first-order Taylor of LLM-Pruner (Ma et al., 2023, arXiv 2305.11627, eq. 5 without its second
  order; `param_first` with `grouping_strategy sum` in its code). Over q, k, v, o of a KV group with its query heads;
  over gate, up and down of a channel.
- `gisp`: the same over the size of the unit, by which GISP (arXiv 2510.18030) compares heads with channels: a group's
  number of weights (of one head 4 · head size · hidden size) and, as its code has it, 3 · intermediate size for a
  channel (2 without a gate). The paper says the weights of the structure, 3 · hidden size: `gisp-mean`.

The loss is the mean cross entropy of the text's next tokens that count; for GISP on text of choices it is that of the
right choices' tokens less that of the wrong ones' (`Contrast`), as published. Float32, whatever the model's dtype.

Forward and back go layer by layer, over all batches before the next layer, so that beside the model there are the
hidden states before each layer and the gradients of one layer's weights. Nothing is trained. Shapes: B rows, T tokens,
V vocabulary, D hidden size, U units.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from seap.activations.layerwise import Walk, in_pieces, resume
from seap.activations.stats import Rows
from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import CHANNELS, Axis, Slice
from seap.models.modes import evaluation
from seap.text.contrast import Contrast
from seap.text.corpus import Batch

HALVES = (torch.bfloat16, torch.float16)


def loss_of(score: str, contrasts: Sequence[Contrast]) -> list[str]:
    """What loss gradients are of, in words, where the text may have two. contrasts: of each task."""
    if not score.startswith("gisp"):
        return []
    found = Contrast.joined(contrasts)
    if not found:
        return ["gradients are of the loss on all tokens of the text that count"]
    return [f"gradients are of the loss on {len(found.right)} right choices less that on {len(found.wrong)} wrong ones"]


@dataclass
class _Stream:
    """The text on its way through the layers: hidden states (B, T, D) per layer and batch, then gradients."""

    walk: Walk
    sign: float
    states: list[list[Tensor]]  # before each layer and after the last
    grads: list[Tensor] = field(default_factory=list)  # of the loss, per batch, behind the layer at hand

    @classmethod
    def start(cls, arch: Arch, rows: Rows, sign: float, batch_tokens: int) -> "_Stream":
        walk = Walk.start(arch, rows, batch_tokens=batch_tokens, apart=False)
        return cls(walk, sign, [walk.hidden])

    def forward_(self, layer: int) -> None:
        self.states.append([self.walk.run(layer, i, hidden) for i, hidden in enumerate(self.states[-1])])

    def turn_(self) -> None:
        """From the states after the last layer to the loss's gradients there."""
        self.grads = [self.sign * grad for grad in _at_the_end(self.walk, self.states.pop())]

    def back_(self, layer: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of a layer's weights, over all batches; the stream's own then are before that layer."""
        sums = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
        for index, hidden in enumerate(self.states.pop()):
            with torch.enable_grad():
                leaf = hidden.detach().requires_grad_()
                after = self.walk.run(layer, index, leaf)
                self.grads[index], *found = torch.autograd.grad(after, [leaf, *weights], self.grads[index])
            for total, grad in zip(sums, found, strict=True):
                total += grad
        return sums


def first_order(
    arch: Arch,
    rows: Rows,
    *,
    less: Rows = (),
    masks: Mapping[str, Tensor] | None = None,
    batch_tokens: int,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Axis key → Σ |w · g| of every unit, float64 (U,), by the loss of `rows` less that of `less`.

    masks: the units that are there; by default all are. Raises UserError for text without a token to predict.
    """
    around = [value for name, value in _tensors(arch.model) if not name.startswith(f"{arch.family.layers}.")]
    found: dict[str, Tensor] = {}
    with evaluation(arch.model):
        with _in_float32(around):
            parts = [(rows, 1.0), *([(less, -1.0)] if less else [])]
            streams = [_Stream.start(arch, part, sign, batch_tokens) for part, sign in parts]
        for layer in range(len(arch.layers)):
            with _at_work(arch, layer, masks):
                for stream in streams:
                    stream.forward_(layer)
        with _in_float32(around):
            for stream in streams:
                stream.turn_()
        layers = reversed(range(len(arch.layers)))
        total = len(arch.layers)
        for layer in tqdm(layers, total=total, desc="gradients", unit="layer", disable=not progress, leave=False):
            with _at_work(arch, layer, masks):
                found |= _of_layer(arch, layer, streams)
    return {axis.key: found[axis.key] for axis in arch.axes}


def unit_size(axis: Axis, name: str, weights: Sequence[Tensor]) -> float:
    """What a unit's sum is divided by. weights: of the axis's linears."""
    if name == "taylor":
        return 1.0
    if name == "gisp" and axis.name == CHANNELS:
        return float(axis.units * sum(len(part.sections) for part in axis.slices))
    return sum(weight.numel() for weight in weights) / axis.units


def _of_layer(arch: Arch, layer: int, streams: Sequence[_Stream]) -> dict[str, Tensor]:
    places = _places(arch, layer)
    weights = [arch.linear(layer, part.module).weight for _, part in places]
    found = {axis.key: torch.zeros(axis.units, dtype=torch.float64) for axis in arch.layer_axes(layer)}
    first, *others = [stream.back_(layer, weights) for stream in streams]
    for grads in others:
        for total, grad in zip(first, grads, strict=True):
            total += grad
    for (axis, part), weight, grad in zip(places, weights, first, strict=True):
        found[axis.key] += _by_unit(axis, part, grad.mul_(weight.detach()).abs_())
    return found


def _places(arch: Arch, layer: int) -> list[tuple[Axis, Slice]]:
    """Every linear that an axis of the layer runs through."""
    return [(axis, part) for axis in arch.layer_axes(layer) for part in axis.slices if not part.values]


def _by_unit(axis: Axis, part: Slice, values: Tensor) -> Tensor:
    """(U,): the sum of a weight's values, as it is stored, over the rows or columns of each unit."""
    lines = values.sum(1 - part.dim).cpu().double()
    owners = torch.cat([torch.arange(axis.units).repeat_interleave(size) for size in part.sections])
    return torch.zeros(axis.units, dtype=torch.float64).index_add_(0, owners, lines)


def _at_the_end(walk: Walk, hidden: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the mean cross entropy by the hidden states after the last layer, per batch."""
    count = sum(int(batch.predicting.sum()) for batch in walk.batches)
    if not count:
        raise UserError("no token of the text has a next one that counts, so there is no gradient; give longer texts")
    return [
        torch.cat([_of_rows(walk.arch, *piece, count) for piece in in_pieces(walk.arch, batch, states)])
        for batch, states in zip(walk.batches, hidden, strict=True)
    ]


def _of_rows(arch: Arch, part: Batch, states: Tensor, count: int) -> Tensor:
    targets, wanted = part.ids[:, 1:].to(states.device), part.predicting.to(states.device)
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        logits = resume(arch, part, len(arch.layers), leaf)[:, :-1].float()
        loss = cross_entropy(logits[wanted], targets[wanted], reduction="sum") / count
        [grad] = torch.autograd.grad(loss, [leaf])
    return grad


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@contextlib.contextmanager
def _in_float32(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Tensors of half precision in float32 for a while."""
    before = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in HALVES]
    for tensor, data in before:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


@contextlib.contextmanager
def _at_work(arch: Arch, layer: int, masks: Mapping[str, Tensor] | None) -> Iterator[None]:
    """A layer in float32 whose linears can be differentiated and whose consumers read nothing from what is gone."""
    places = _places(arch, layer)
    wanted = {id(arch.linear(layer, part.module).weight) for _, part in places}
    parameters = [(value, value.requires_grad) for value in arch.layers[layer].parameters()]
    for value, _ in parameters:
        value.requires_grad_(id(value) in wanted)
    with _in_float32([value for _, value in _tensors(arch.layers[layer])]), contextlib.ExitStack() as stack:
        for axis, part in places:
            if masks is not None and part.consumer and not masks[axis.key].all():
                stack.enter_context(_without(arch.linear(layer, part.module).weight, part, masks[axis.key]))
        try:
            yield
        finally:
            for value, requires in parameters:
                value.requires_grad_(requires)


@contextlib.contextmanager
def _without(weight: Tensor, part: Slice, mask: Tensor) -> Iterator[None]:
    """A weight with 0 at the places of the units that are gone, for a while."""
    before = weight.data
    gone = part.indices(~mask.cpu()).to(before.device)
    weight.data = before.index_fill(part.dim, gone, 0)
    try:
        yield
    finally:
        weight.data = before
