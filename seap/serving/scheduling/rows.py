"""Rows of one network that are decoded together: they join and leave between steps, each with its part of the KV cache.

Rows are padded on the left to one length, so that all of them append at the same place; the attention mask hides the
padding and positions count real tokens only. A row that leaves makes its place free for one that joins, so that
neither moves the others' cache; what is free is decoded along, and is given up when it is half of all.
Shapes: B rows, T tokens, G KV groups, K head size, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from seap.activations.layerwise import cache_name
from seap.models.cache import SPARE, growing_cache


@dataclass
class Rows:
    """Sequences in flight. mask (B, T): True on real tokens, all of which are in the cache; last (B,): fed next.

    owners (B): whose each row is; None of a free one.
    """

    cache: DynamicCache
    mask: Tensor
    last: Tensor
    owners: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.live)

    @property
    def live(self) -> dict[int, Any]:
        """Place → owner of the rows that aren't free."""
        return {place: owner for place, owner in enumerate(self.owners) if owner is not None}

    @torch.inference_mode()
    def leave_(self, places: Iterable[int]) -> None:
        """Free these rows. Where half of the rows are free, or of the columns padding, the rest moves together."""
        for place in places:
            self.owners[place] = None
        index = self._index(self.live)
        length = self.mask.shape[1]
        start = int(self.mask[index].any(0).int().argmax()) if len(index) else length
        if 2 * len(index) <= len(self.owners) or (start > SPARE and 2 * start > length):
            self._keep_(index, start)

    def _keep_(self, index: Tensor, start: int) -> None:
        for layer in self.cache.layers:
            layer.replace_(layer.keys[index, :, start:].clone(), layer.values[index, :, start:].clone())
        self.mask, self.last = self.mask[index, start:].clone(), self.last[index]
        self.owners = [*self.live.values()]

    @torch.inference_mode()
    def join_(self, other: "Rows") -> None:
        """Take in the live rows of another group of the same network, in free places first."""
        joining = other.live
        self._widen_(other.mask.shape[1], len(self) + len(joining))
        free = [place for place, owner in enumerate(self.owners) if owner is None][: len(joining)]
        places, given = self._index(free), self._index(joining)
        start = self.mask.shape[1] - other.mask.shape[1]
        for own, new in zip(self.cache.layers, other.cache.layers, strict=True):
            own.keys[places, :, start:], own.values[places, :, start:] = new.keys[given], new.values[given]
        self.mask[places] = pad(other.mask[given], (start, 0))
        self.last[places] = other.last[given]
        for place, owner in zip(free, joining.values(), strict=True):
            self.owners[place] = owner

    def _widen_(self, length: int, num_rows: int) -> None:
        """Make room for so many tokens and rows: padding on the left, free rows at the end."""
        columns = max(length - self.mask.shape[1], 0)
        rows = max(num_rows - len(self.owners), 0)
        if columns or rows:
            for layer in self.cache.layers:
                added = (0, 0, columns, 0, 0, 0, 0, rows)
                layer.replace_(pad(layer.keys, added), pad(layer.values, added))
            self.mask = pad(self.mask, (columns, 0, 0, rows))
            self.last = pad(self.last, (0, rows))
            self.owners = [*self.owners, *[None] * rows]

    def _index(self, places: Iterable[int]) -> Tensor:
        return torch.tensor([*places], dtype=torch.long, device=self.mask.device)


@torch.inference_mode()
def prefill(model: Any, prompts: Sequence[Sequence[int]], owners: Sequence[Any]) -> tuple[Rows, Tensor]:
    """Read prompts together. Returns their rows, `last` still to be set, and the next token's logits (B, V)."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    device = next(model.parameters()).device
    rows = Rows(growing_cache(), mask.to(device), ids[:, -1].to(device), list(owners))
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
