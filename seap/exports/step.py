"""One forward pass as a tracer is to see it: the cache comes in and goes out as plain tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seap.exports.stock import slides
from seap.models.arch import Arch
from seap.models.heads import num_groups, size_of_key
from seap.models.modes import cache_name


class Step(nn.Module):
    """A model whose cache is among its inputs and outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.cache_name = cache_name(model)
        config = model.config
        self.window = config.sliding_window if slides(config) else None
        self.has_kinds = getattr(config, "layer_types", None) is not None  # then transformers takes a mask for each

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """(B, T), (B, P + T), (B, T), then keys and values (B, G, P, K) of each layer → logits (B, T, V), the cache.

        The cache's tensors are set rather than added to, since joining to an empty tensor isn't traced. So is the mask:
        the one that transformers builds is made by vmap, which isn't either. Where a window hides tokens the cache has
        them all the same.
        """
        cache = _cache_of(past)
        length, total = input_ids.shape[1], attention_mask.shape[1]
        places = torch.arange(total, device=input_ids.device)
        asking = places[total - length :, None]
        causal = (places[None, :] <= asking)[None, None] & attention_mask[:, None, None, :].to(torch.bool)
        mask: Any = _added(causal)
        if self.window is not None:
            near = _added(causal & (places[None, :] > asking - self.window))
            mask = {"full_attention": mask, "sliding_attention": near} if self.has_kinds else near
        found = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=True,
            **{self.cache_name: cache},
        )
        return found.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def _added(seen: Tensor) -> Tensor:
    """What is added to scores: 0 where a token is seen."""
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def _cache_of(past: tuple[Tensor, ...]) -> Any:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    cache.layers = [DynamicLayer() for _ in past[::2]]
    for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
        layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
        layer.is_initialized = True
    return cache


def cache_shapes(arch: Arch) -> list[tuple[int, int]]:
    """KV groups and head size of every cache tensor: keys, then values, layer by layer."""
    groups = [axis.units for axis in arch.axes if axis.name == "kv_groups"]
    if not groups:
        groups = [num_groups(arch.model.config)] * len(arch.layers)
    return [(count, size_of_key(arch)) for count in groups for _ in range(2)]


def cache_names(prefix: str, number: int) -> list[str]:
    """`past_key_values.0.key`, `past_key_values.0.value`, …"""
    return [f"{prefix}.{i // 2}.{'value' if i % 2 else 'key'}" for i in range(number)]


def example_of(shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Inputs to trace with: two rows of two tokens after three."""
    past = [torch.zeros(2, groups, 3, size) for groups, size in shapes]
    ids, mask = torch.ones(2, 2, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    return ids, mask, torch.tensor([[3, 4]] * 2), *past


def stock_name(model: Any) -> str:
    """`LlamaForCausalLM`, also where seap has made the class its own."""
    return next(base.__name__ for base in type(model).__mro__ if base.__module__.startswith("transformers"))
