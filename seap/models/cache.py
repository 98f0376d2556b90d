"""A KV cache whose buffers grow by doubling and are written in place: transformers' own copies all of it at every step.

Shapes: B rows, G KV groups, T tokens, K head size.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from seap.models.families import keeps_states

SPARE = 32  # tokens of room that a new buffer has


def cache_for(model: Any) -> DynamicCache:
    """An empty cache: a growing one, or transformers' own where layers keep states besides keys and values."""
    return DynamicCache(config=model.config) if keeps_states(model.config) else growing_cache()


def growing_cache(most: int | None = None) -> DynamicCache:
    """An empty cache; its layers take the shapes of what is first written to them. most: tokens that it will hold, for
    which its buffers have room and no more."""

    def layer(*args: Any, **kwargs: Any) -> GrowingLayer:
        made = GrowingLayer(*args, **kwargs)
        made.most = most
        return made

    cache = DynamicCache()
    cache.layer_class_to_replicate = layer
    return cache


class GrowingLayer(DynamicLayer):
    """Keys and values (B, G, T, K) that are views of buffers with room for more tokens."""

    room: tuple[Tensor, Tensor] | None = None
    most: int | None = None  # tokens that a buffer has room for

    @property
    def columns(self) -> int:
        """Tokens that the buffers have room for."""
        return int((self.keys if self.room is None else self.room[0]).shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        length = self.keys.shape[-2]
        total = length + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < total:
            self.room = self._grown(self.keys, total), self._grown(self.values, total)
        for buffer, states in zip(self.room, (key_states, value_states), strict=True):
            buffer[..., length:total, :] = states
        self.keys, self.values = (buffer[..., :total, :] for buffer in self.room)
        return self.keys, self.values

    def _grown(self, held: Tensor, total: int) -> Tensor:
        batch, groups, length, size = held.shape
        room = max(2 * length, total + SPARE)
        if self.most is not None:
            room = max(min(room, self.most), total)
        buffer = held.new_empty(batch, groups, room, size)
        buffer[..., :length, :] = held
        return buffer

    def replace_(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.room = keys, values, None
