"""What a model writes doesn't depend on a cache, or on padding."""

from typing import Any

import pytest
import torch
from tiny import ids


@torch.no_grad()
def assert_a_cache_changes_nothing(model: Any, cache: str) -> None:
    """Greedy text with a cache against full forward passes; skips where the class has no static one."""
    if cache == "static" and not model._can_compile_fullgraph:
        pytest.skip(f"{type(model).__mro__[1].__name__} has no static cache in transformers")
    prompt = ids(2, 9)
    text = model.generate(
        prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False, cache_implementation=cache, disable_compile=True
    )
    for end in range(prompt.shape[1], text.shape[1]):
        logits = model(text[:, :end], use_cache=False).logits[:, -1]
        logits[:, 2] = -torch.inf  # min_new_tokens forbids the end of text
        assert torch.equal(logits.argmax(-1), text[:, end])


@torch.no_grad()
def assert_left_padding_changes_nothing(model: Any) -> None:
    prompt = ids(1, 7)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt], 1)
    mask = (torch.arange(11) >= 4).long()[None]
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, 7:]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 11:], alone)
