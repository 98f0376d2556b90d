"""How much the loss moves with what each consumer writes: Fisher information, forward and back one layer at a time.

With g the gradient of −log p(y|x) at a consumer's output, y drawn from the model itself, a small error e in that output
costs about ½ eᵀ F e in KL, F = E[g gᵀ] (Amari, 1998). Selection that weighs the output error by F keeps what the loss
needs rather than what is large. Only the hidden states before each layer are kept; a layer is run again for its
gradient. Nothing is trained. Shapes: B rows, T tokens, V vocabulary, O outputs of a consumer.
"""

import contextlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from seap.arch import Arch
from seap.layerwise import Walk, evaluation, resume, split_rows, taken
from seap.stats import Rows

FLOOR = 0.5  # added to F, over the mean of its diagonal: few tokens leave many directions unseen


def weigh_outputs(
    arch: Arch, rows: Rows, *, num_tokens: int, seed: int, batch_tokens: int, progress: bool
) -> dict[str, Tensor]:
    """Axis key → R (O, O) float32 with RᵀR = F + floor, so that ‖R e‖² is what an output error e costs.

    rows: calibration text, of which about `num_tokens` tokens are drawn among those that aren't held out.
    """
    fit = split_rows(rows)[0]
    drawn = random.Random(seed).sample(fit, len(fit))
    taken_rows: list[Sequence[int]] = []
    for row in drawn:
        if sum(map(len, taken_rows)) >= num_tokens:
            break
        taken_rows.append(row)
    with evaluation(arch.model):
        found = fisher(arch, taken_rows, seed=seed, batch_tokens=batch_tokens, progress=progress)
    return {key: root(information) for key, information in found.items()}


def root(information: Tensor) -> Tensor:
    """R (O, O) float32 of F (O, O): the upper Cholesky factor of F + FLOOR · mean diag F · I."""
    scale = information.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(information), dtype=torch.float64)
    return torch.linalg.cholesky(information.double() / scale + FLOOR * eye).t().float()


def fisher(
    arch: Arch, rows: Sequence[Sequence[int]], *, seed: int, batch_tokens: int, progress: bool
) -> dict[str, Tensor]:
    """Axis key → Σ g gᵀ (O, O) at the consumer's output, over all real tokens; float32."""
    generator = torch.Generator().manual_seed(seed)
    walk = Walk.start(arch, rows, batch_tokens=batch_tokens)
    states = walk.states()
    sums: dict[str, Tensor] = {}
    bar = tqdm(range(len(walk.batches)), desc="sensitivity", unit="batch", disable=not progress, leave=False)
    for index in bar:
        grad = _at_the_end(walk, index, states[-1][index], generator)
        for layer in reversed(range(len(arch.layers))):
            grad = _through(walk, layer, index, states[layer][index], grad, sums)
    return sums


def _at_the_end(walk: Walk, index: int, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """d(−Σ log p(y)) / d(hidden states after the last layer) of one batch, y sampled."""
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        logits = resume(walk.arch, walk.batches[index], len(walk.arch.layers), leaf).float()
        real = logits[walk.batches[index].mask.to(logits.device)]
        sampled = torch.multinomial(real.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
        [grad] = torch.autograd.grad(cross_entropy(real, sampled.to(real.device), reduction="sum"), [leaf])
    return grad


def _through(walk: Walk, layer: int, index: int, hidden: Tensor, grad: Tensor, sums: dict[str, Tensor]) -> Tensor:
    """The gradient before a layer from the one after it; g gᵀ of its consumers' outputs is added to `sums`."""
    axes = [axis for axis in walk.arch.axes if axis.layer == layer]
    found: list[list[Tensor]] = [[] for _ in axes]
    with torch.enable_grad(), contextlib.ExitStack() as stack:
        for axis, into in zip(axes, found, strict=True):
            stack.enter_context(taken(walk.arch.consumer(axis), into))
        leaf = hidden.detach().requires_grad_()
        after = walk.run(layer, index, leaf)
        before, *grads = torch.autograd.grad(after, [leaf, *(into[0] for into in found)], grad)
    for axis, g in zip(axes, grads, strict=True):
        rows = walk.real(index, g).float()
        outer = (rows.t() @ rows).cpu()
        sums[axis.key] = sums[axis.key] + outer if axis.key in sums else outer
    return before
