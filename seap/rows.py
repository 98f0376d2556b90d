"""Rows of one network that are decoded together: they join and leave between steps, each with its part of the KV cache.

Rows are padded on the left to one length, so that all of them append at the same place; the attention mask hides the
padding and positions count real tokens only. The cache's buffers grow by doubling and are written in place.
Shapes: B rows, T tokens, G KV groups, K head size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from seap.layerwise import cache_name

SPARE = 32  # tokens of room that a new buffer has


class GrowingLayer(DynamicLayer):
    """Keys and values (B, G, T, K) that are views of buffers with room for more tokens."""

    room: tuple[Tensor, Tensor] | None = None

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
        buffer = held.new_empty(batch, groups, max(2 * length, total + SPARE), size)
        buffer[..., :length, :] = held
        return buffer

    def replace_(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.room = keys, values, None


@dataclass
class Rows:
    """Sequences in flight. mask (B, T): True on real tokens, all of which are in the cache; last (B,): fed next."""

    cache: DynamicCache
    mask: Tensor
    last: Tensor
    owners: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.owners)

    def keep_(self, places: Sequence[int]) -> None:
        """Drop all rows but these, and the columns that are padding for all that stay."""
        index = torch.tensor(places, dtype=torch.long, device=self.mask.device)
        mask = self.mask[index]
        start = int(mask.any(0).int().argmax()) if len(index) else mask.shape[1]
        for layer in self.cache.layers:
            layer.replace_(layer.keys[index, :, start:].clone(), layer.values[index, :, start:].clone())
        self.mask, self.last = mask[:, start:].clone(), self.last[index]
        self.owners = [self.owners[place] for place in places]

    def join_(self, other: "Rows") -> None:
        """Take in the rows of another group of the same network."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        for own, new in zip(self.cache.layers, other.cache.layers, strict=True):
            keys = torch.cat([_padded(own.keys, length), _padded(new.keys, length)])
            own.replace_(keys, torch.cat([_padded(own.values, length), _padded(new.values, length)]))
        masks = [pad(part.mask, (length - part.mask.shape[1], 0)) for part in (self, other)]
        self.mask, self.last = torch.cat(masks), torch.cat([self.last, other.last])
        self.owners = [*self.owners, *other.owners]


def _padded(states: Tensor, length: int) -> Tensor:
    """(B, G, T, K) → (B, G, length, K), zeros on the left."""
    return pad(states, (0, 0, length - states.shape[-2], 0))


@torch.inference_mode()
def prefill(model: Any, prompts: Sequence[Sequence[int]], owners: Sequence[Any]) -> tuple[Rows, Tensor]:
    """Read prompts together. Returns their rows, `last` still to be set, and the next token's logits (B, V)."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    device = next(model.parameters()).device
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    rows = Rows(cache, mask.to(device), ids[:, -1].to(device), list(owners))
    return rows, _forward(model, rows, ids.to(device))


@torch.inference_mode()
def decode(model: Any, rows: Rows) -> Tensor:
    """One step: feed `last`, return the next token's logits (B, V)."""
    rows.mask = pad(rows.mask, (0, 1), value=True)
    return _forward(model, rows, rows.last.unsqueeze(1))


def _forward(model: Any, rows: Rows, ids: Tensor) -> Tensor:
    mask = rows.mask.long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, cache_name(model): rows.cache}
    logits: Tensor = model(**inputs, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1]
