"""A short piece of a model's own work, timed: how many threads help it."""

import time
from typing import Any

import torch

from seap.threads import settle

SURE_PARAMS = 3 * 10**8  # of models whose products are large enough for as many threads as there are
OPERATIONS = 10**9  # of the piece, half: some 10 ms, whatever the model


def settle_threads(model: Any) -> None:
    """Let the process compute with as many threads as help this model (`seap.threads.settle`)."""
    params = sum(p.numel() for p in model.parameters())
    if model.device.type != "cpu" or params > SURE_PARAMS:
        settle(None)
        return
    ids = torch.zeros(1, min(max(OPERATIONS // params, 1), 256), dtype=torch.long)

    @torch.no_grad()
    def seconds() -> float:
        started = time.perf_counter()
        model.base_model(ids, use_cache=False)
        return time.perf_counter() - started

    settle(seconds)
