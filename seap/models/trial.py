"""A short piece of a model's own work, timed: how many threads help it.

A step that writes one token has other products than a batch of text: of a small model the first gains nothing by a
second thread, where that halves what the second takes. Shapes: O outputs and C inputs of a linear.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from seap.threads import settle

SURE_PARAMS = 3 * 10**8  # of models whose products are large enough for as many threads as there are
OPERATIONS = 10**9  # of the piece, half: some 10 ms, whatever the model
BATCH = 256  # tokens at a time that stand for a batch of text


def settle_threads(model: Any, *, in_batches: bool = False) -> None:
    """Let the process compute with as many threads as help this model (`seap.threads.settle`).

    in_batches: at reading text, many tokens at a time; else at a step that writes some.
    """
    params = sum(p.numel() for p in model.parameters())
    if model.device.type != "cpu" or params > SURE_PARAMS:
        settle(None)
        return
    if in_batches:
        settle(batch_of(_first_linears(model)))
        return
    ids = torch.zeros(1, min(max(OPERATIONS // params, 1), BATCH), dtype=torch.long)

    @torch.no_grad()
    def seconds() -> float:
        started = time.perf_counter()
        model.base_model(ids, use_cache=False)
        return time.perf_counter() - started

    settle(seconds)


def _first_linears(model: nn.Module) -> list[Tensor]:
    """Weights of linears in the order in which the model has them, as many as the piece takes, at least one."""
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.is_floating_point():
            if BATCH * sum(weight.numel() for weight in found) >= OPERATIONS:
                break
            found.append(module.weight.detach())
    return found


def batch_of(weights: Sequence[Tensor], *, most: int = 1) -> Callable[[], float] | None:
    """Seconds of a batch's products with weights (O, C), at most so many times over; None without any."""
    sizes = sum(weight.numel() for weight in weights)
    if not sizes:
        return None
    times = min(max(OPERATIONS // (BATCH * sizes), 1), most)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(BATCH, weight.shape[1], generator=generator).to(weight) for weight in weights]

    @torch.no_grad()
    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(times):
            for part, weight in zip(rows, weights, strict=True):
                silu(linear(part, weight))
        return time.perf_counter() - started

    return seconds
