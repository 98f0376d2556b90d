"""How much the loss moves with what each consumer writes: Fisher information, forward and back one layer at a time.

With g the gradient of −log p(y|x) at a consumer's output, y drawn from the model itself, a small error e in that output
costs about ½ eᵀ F e in KL, F = E[g gᵀ] (Amari, 1998). Selection that weighs the output error by F keeps what the loss
needs rather than what is large. Only the hidden states before each layer are kept; a layer is run again for its
gradient. Nothing is trained. Shapes: B rows, T tokens, N real tokens, V vocabulary,
C inputs and O outputs of a linear.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from seap.activations.layerwise import Walk, evaluation, resume, split_rows, taken
from seap.activations.stats import Rows
from seap.models.arch import Arch
from seap.text.rows import num_counted

Place = tuple[int, str]  # layer, and a linear in it
FLOOR = 0.5  # added to F, over the mean of its diagonal: few tokens leave many directions unseen


def measure_sensitivity(
    arch: Arch, rows: Rows, *, num_tokens: int, seed: int, batch_tokens: int, progress: bool
) -> dict[str, Tensor]:
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
        found = fisher(arch, taken_rows, seed=seed, batch_tokens=batch_tokens, progress=progress)
    count = sum(map(num_counted, taken_rows))
    return {key: information.div_(count) for key, information in found.items()}


def root(information: Tensor) -> Tensor:
    """R (O, O) float32 with RᵀR = F / mean diag F + FLOOR · I, so that ‖R e‖² weighs an output error e. F (O, O)."""
    scale = information.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(information), dtype=torch.float64)
    return torch.linalg.cholesky(information.double() / scale + FLOOR * eye).t().float()


def fisher(
    arch: Arch, rows: Sequence[Sequence[int]], *, seed: int, batch_tokens: int, progress: bool
) -> dict[str, Tensor]:
    """Axis key → Σ g gᵀ (O, O) at the consumer's output, over all real tokens; float32."""
    keys = {(axis.layer, axis.consumer): axis.key for axis in arch.axes}
    sums: dict[str, Tensor] = {}
    for place, _, grad in gradients(arch, rows, [*keys], seed=seed, batch_tokens=batch_tokens, progress=progress):
        outer = (grad.t() @ grad).cpu()
        sums[keys[place]] = sums[keys[place]] + outer if keys[place] in sums else outer
    return sums


def gradients(
    arch: Arch, rows: Sequence[Sequence[int]], places: Sequence[Place], *, seed: int, batch_tokens: int, progress: bool
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Batch after batch, last layer first: a linear, what it reads (N, C), and g at its output (N, O); float32."""
    generator = torch.Generator().manual_seed(seed)
    walk = Walk.start(arch, rows, batch_tokens=batch_tokens)
    states = walk.states()
    bar = tqdm(range(len(walk.batches)), desc="sensitivity", unit="batch", disable=not progress, leave=False)
    for index in bar:
        grad = _at_the_end(walk, index, states[-1][index], generator)
        for layer in reversed(range(len(arch.layers))):
            modules = [module for own, module in places if own == layer]
            grad, found = _through(walk, layer, index, states[layer][index], grad, modules)
            for module, (inputs, outputs) in found.items():
                yield (layer, module), walk.real(index, inputs).float(), walk.real(index, outputs).float()


def _at_the_end(walk: Walk, index: int, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """d(−Σ log p(y)) / d(hidden states after the last layer) of one batch, y sampled."""
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        logits = resume(walk.arch, walk.batches[index], len(walk.arch.layers), leaf).float()
        real = logits[walk.batches[index].counted.to(logits.device)]
        sampled = torch.multinomial(real.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
        [grad] = torch.autograd.grad(cross_entropy(real, sampled.to(real.device), reduction="sum"), [leaf])
    return grad


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
        leaf = hidden.detach().requires_grad_()
        after = walk.run(layer, index, leaf)
        before, *grads = torch.autograd.grad(after, [leaf, *(out[0] for out in writes)], grad)
    read = [into[0].detach() for into in reads]
    return before, dict(zip(modules, zip(read, grads, strict=True), strict=True))
