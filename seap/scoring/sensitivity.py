"""How much the loss moves with what each consumer writes: Fisher information, forward and back one layer at a time.

With g the gradient of −log p(y|x) at a consumer's output, y drawn from the model itself, a small error e in that output
costs about ½ eᵀ F e in KL, F = E[g gᵀ] (Amari, 1998). Selection that weighs the output error by F keeps what the loss
needs rather than what is large. Only the hidden states before each layer are kept; a layer is run again for its
gradient, and all batches go through one layer before the one below it, so that a streamed model is read twice. The
words drawn depend on the seed and the row alone, so batches can be dealt out to several ranks. Nothing is trained.
Shapes: B rows, T tokens, N real tokens, V vocabulary, C inputs and O outputs of a linear.
"""

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from seap.activations.layerwise import (
    Changed,
    Walk,
    finished,
    in_pieces,
    placed,
    split_rows,
    taken,
    unchanged,
)
from seap.activations.normed import sizes_of
from seap.activations.ranks import Ranks, summed
from seap.activations.stats import Rows
from seap.allocation import give_back
from seap.models.arch import Arch
from seap.models.modes import evaluation
from seap.models.residency import at_the_end, resident
from seap.models.shelf import Shelf, shelf_for
from seap.text.corpus import Batch
from seap.text.rows import num_counted

Place = tuple[int, str]  # layer, and a linear in it
Ending = Callable[[int, Tensor], Tensor]  # a batch, its states (B, T, D) after the last layer → their gradient
FLOOR = 0.5  # added to F, over the mean of its diagonal: few tokens leave many directions unseen


def measure_sensitivity(
    arch: Arch,
    rows: Rows,
    *,
    num_tokens: int,
    seed: int,
    batch_tokens: int,
    progress: bool,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Mapping[str, Tensor]:
    """Axis key → F (O, O) float32 per token, so that ½ eᵀ F e is about what an output error e costs in nats.

    rows: calibration text, of which about `num_tokens` tokens are drawn among those that aren't held out.
    """
    fit = split_rows(rows)[0]
    drawn = random.Random(seed).sample(fit, len(fit))
    taken_rows: list[Sequence[int]] = []
    for row in drawn:
        if sum(map(num_counted, taken_rows)) >= num_tokens:
            break
        taken_rows.append(row)
    with evaluation(arch.model):
        found = fisher(arch, taken_rows, seed=seed, batch_tokens=batch_tokens, progress=progress, ranks=ranks)
    count = sum(map(num_counted, taken_rows))
    for key in found:
        found[key].div_(count)
        found.rest(key)
    return found


def root(information: Tensor) -> Tensor:
    """R (O, O) float32 with RᵀR = F / mean diag F + FLOOR · I, so that ‖R e‖² weighs an output error e. F (O, O)."""
    scale = information.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(information), dtype=torch.float64, device=information.device)
    return torch.linalg.cholesky(information.double() / scale + FLOOR * eye).t().float()


def fisher(
    arch: Arch,
    rows: Sequence[Sequence[int]],
    *,
    seed: int,
    batch_tokens: int,
    progress: bool,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Shelf:
    """Axis key → Σ g gᵀ (O, O) at the consumer's output, over all real tokens; float32.

    Where a norm stands behind, of g · rms(output), as the errors that it weighs are over rms(output) (`normed.py`).
    """
    axes = {(axis.layer, axis.consumer): axis for axis in arch.axes}
    outputs = {place: arch.weight(*place).shape[0] for place in axes}
    sums = shelf_for(arch.model, sum(4 * size**2 for size in outputs.values()), "the loss's sensitivities")
    walk = Walk.start(arch, rows, batch_tokens=batch_tokens, ranks=ranks)
    back = Backward.start(walk, partial(_sampled, walk, seed))
    for layer in back.layers(progress=progress):
        own = {module: axis for (at, module), axis in axes.items() if at == layer}
        found: dict[str, Tensor] = {}
        for module, inputs, grad in back.through(layer, [*own]):
            if own[module].is_normed:
                linear = arch.linear(layer, module)
                grad = grad * sizes_of(linear(inputs.to(linear.weight)))
            outer = grad.t() @ grad
            found[module] = found[module] + outer if module in found else outer
        for module, axis in own.items():
            size = outputs[layer, module]
            sums[axis.key] = summed(found.pop(module).cpu() if module in found else torch.zeros(size, size), ranks)
    return sums


def gradients(
    arch: Arch, rows: Sequence[Sequence[int]], places: Sequence[Place], *, seed: int, batch_tokens: int, progress: bool
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Last layer first, batch after batch: a linear, what it reads (N, C), and g at its output (N, O); float32."""
    walk = Walk.start(arch, rows, batch_tokens=batch_tokens)
    yield from backward(walk, walk.states(Shelf()), places, partial(_sampled, walk, seed), progress=progress)


def backward(
    walk: Walk, states: Sequence[Sequence[Tensor]], places: Sequence[Place], ending: Ending, *, progress: bool
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """The same with the gradient that `ending` gives. states: before each layer and after the last, per batch."""
    back = Backward.of(walk, states, ending)
    for layer in back.layers(progress=progress):
        for module, inputs, grad in back.through(layer, [module for own, module in places if own == layer]):
            yield (layer, module), inputs, grad


@dataclass
class Backward:
    """A corpus on its way back through the layers: the gradient (B, T, D) of every batch after the next layer."""

    walk: Walk
    states: list[Sequence[Tensor]]  # per layer, per batch: the hidden states before it
    grads: list[Tensor]
    shelf: Shelf = field(default_factory=Shelf)  # where the states are
    changed: Changed = unchanged  # what a layer is meanwhile

    @classmethod
    def start(cls, walk: Walk, ending: Ending) -> "Backward":
        """Run the walk to its end."""
        model, num_layers = walk.arch.model, len(walk.arch.layers)
        shelf = shelf_for(model, walk.state_bytes * (num_layers + 1), "hidden states")
        return cls.of(walk, walk.states(shelf), ending, shelf=shelf)

    @classmethod
    def of(
        cls,
        walk: Walk,
        states: Sequence[Sequence[Tensor]],
        ending: Ending,
        *,
        shelf: Shelf | None = None,
        changed: Changed = unchanged,
    ) -> "Backward":
        """From states that are known. shelf: where they are, to be given back as they are used."""
        with at_the_end(walk.arch):
            grads = [ending(index, hidden) for index, hidden in enumerate(states[-1])]
        give_back()  # what the logits left lying free
        return cls(walk, list(states[:-1]), grads, Shelf() if shelf is None else shelf, changed)

    def layers(self, *, progress: bool) -> Iterator[int]:
        """Last layer first."""
        layers = range(len(self.walk.arch.layers) - 1, -1, -1)
        yield from tqdm(layers, desc="sensitivity", unit="layer", disable=not progress, leave=False)
        self.shelf.close()

    def through(self, layer: int, modules: Sequence[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Past a layer, batch after batch: a linear in it, what it reads (N, C), and g at its output (N, O)."""
        walk, before = self.walk, self.states.pop()
        with resident(walk.arch, layer), self.changed(layer):
            for index, hidden in enumerate(before):
                self.grads[index], found = _through(walk, layer, index, hidden, self.grads[index], modules)
                self.shelf.pop(f"{index}.{layer}", None)
                for module, (inputs, grad) in found.items():
                    yield module, walk.real(index, inputs).float(), walk.real(index, grad).float()


def _sampled(walk: Walk, seed: int, index: int, hidden: Tensor) -> Tensor:
    """d(−Σ log p(y)) / d(hidden states after the last layer) of one batch, y sampled."""
    grads: list[Tensor] = []
    for batch, states in in_pieces(walk.arch, walk.batches[index], hidden):
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            logits = finished(walk.arch, batch, leaf).float()
            real = logits[batch.said.to(logits.device)]
        slope = real.detach().softmax(-1)
        sampled = drawn_words(slope.cpu(), batch, seed).to(slope.device)
        slope[torch.arange(len(sampled), device=slope.device), sampled] -= 1  # of −log p(y) at logits: p − 1 of y
        grads += torch.autograd.grad(real, [leaf], slope)
    return torch.cat(grads)


def drawn_words(chances: Tensor, batch: Batch, seed: int) -> Tensor:
    """A word for each token that counts, (N,), drawn with these chances (N, V) by the seed and the token's row."""
    each = torch.zeros(batch.ids.shape)
    for place, (ids, mask) in enumerate(zip(batch.ids, batch.mask, strict=True)):
        row = ids[mask]
        generator = torch.Generator().manual_seed(zlib.crc32(row.numpy().tobytes(), seed & 0xFFFFFFFF))
        each[place, : len(row)] = torch.rand(len(row), generator=generator)
    sums = chances.cumsum(1)
    found = torch.searchsorted(sums, each[batch.said][:, None] * sums[:, -1:], right=True)
    return found.flatten().clamp_max(chances.shape[1] - 1)


def _through(
    walk: Walk, layer: int, index: int, hidden: Tensor, grad: Tensor, modules: Sequence[str]
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The gradient before a layer from the one after it; and by module, what it reads and its output's gradient."""
    reads: list[list[Tensor]] = [[] for _ in modules]
    writes: list[list[Tensor]] = [[] for _ in modules]
    with torch.enable_grad(), contextlib.ExitStack() as stack:
        for module, into, out in zip(modules, reads, writes, strict=True):
            linear = walk.arch.linear(layer, module)
            stack.enter_context(taken(linear, into, inputs=True))
            stack.enter_context(taken(linear, out))
        leaf = placed(hidden, walk.arch.layers[layer]).detach().requires_grad_()
        after = walk.run(layer, index, leaf)
        before, *grads = torch.autograd.grad(after, [leaf, *(out[0] for out in writes)], grad.to(after.device))
    read = [into[0].detach() for into in reads]
    return before, dict(zip(modules, zip(read, grads, strict=True), strict=True))
