"""How a model is run: not trained, for a while, and with what it calls its cache."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, as it was before afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def cache_name(model: Any) -> str:
    """What the model calls its key-value cache: transformers renamed it in 5.24."""
    return "cache" if _takes_cache(type(model).forward) else "past_key_values"


@functools.cache
def _takes_cache(forward: Callable[..., Any]) -> bool:
    return "cache" in inspect.signature(forward).parameters
