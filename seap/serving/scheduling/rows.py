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

from seap.models.cache import SPARE, growing_cache
from seap.models.modes import cache_name
from seap.writing.sampling import Token, tokens_of

SCORED = 1 << 24  # logits of prompts, all their tokens', that are held at a time


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
        index, start = self._used()
        if 2 * len(index) <= len(self.owners) or (start > SPARE and 2 * start > self.mask.shape[1]):
            self._keep_(index, start)

    @torch.inference_mode()
    def tighten_(self) -> None:
        """Move the rows together, however little it frees."""
        index, start = self._used()
        most = self.cache.layers[0].most
        if len(index) < len(self.owners) or start or (most is not None and self.columns > most):
            self._keep_(index, start)

    def bound_(self, columns: int) -> None:
        """Let the buffers grow to so many tokens a row, and beyond only one by one."""
        for layer in self.cache.layers:
            layer.most = columns

    @property
    def columns(self) -> int:
        """Tokens that a row has room for."""
        return int(self.cache.layers[0].columns)

    def _used(self) -> tuple[Tensor, int]:
        """The rows that aren't free, and the first column that is no padding in one of them."""
        index = self._index(self.live)
        return index, int(self.mask[index].any(0).int().argmax()) if len(index) else self.mask.shape[1]

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

    @torch.inference_mode()
    def part(self, places: Sequence[int]) -> "Rows":
        """A copy of some rows."""
        index, cache = self._index(places), growing_cache(self.cache.layers[0].most)
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[index], layer.values[index], number)
        return Rows(cache, self.mask[index], self.last[index], [self.owners[place] for place in places])

    @torch.inference_mode()
    def rewind_(self, length: int) -> None:
        """Forget what a step that failed has written: layers before the failure hold a token more than the others."""
        self.mask = self.mask[:, :length]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]

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
def prefill(
    model: Any, prompts: Sequence[Sequence[int]], owners: Sequence[Any], *, most: int | None = None
) -> tuple[Rows, Tensor]:
    """Read prompts together. Returns their rows, `last` still to be set, and the next token's logits (B, V).

    most: tokens that the cache will hold.
    """
    rows, ids = _padded(model, prompts, owners, most)
    return rows, _forward(model, rows, ids)[:, -1]


@torch.inference_mode()
def prefill_scored(
    model: Any,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[Any],
    num_top: Sequence[int],
    *,
    most: int | None = None,
) -> tuple[Rows, Tensor, list[tuple[Token, ...]]]:
    """`prefill`, and each prompt's tokens with their log-probabilities and so many likeliest ones.

    Reads in pieces, so that no more than SCORED logits are held at a time.
    """
    rows, ids = _padded(model, prompts, owners, most)
    mask, width = rows.mask, ids.shape[1]
    piece = max(SCORED // (len(prompts) * model.get_input_embeddings().weight.shape[0]), 1)
    scored = [[Token(prompt[0])] for prompt in prompts]
    for start in range(0, width, piece):
        rows.mask = mask[:, : start + piece]
        logits = _forward(model, rows, ids[:, start : start + piece], keep=0)
        end = min(start + piece, width - 1)  # nothing is known of what follows the last token
        for place, prompt in enumerate(prompts):
            first = max(width - len(prompt), start)
            if first < end:
                known = logits[place, first - start : end - start].float().log_softmax(-1)
                scored[place] += tokens_of(known, ids[place, first + 1 : end + 1], num_top[place])
    return rows, logits[:, -1], [tuple(found) for found in scored]


@torch.inference_mode()
def decode(model: Any, rows: Rows) -> Tensor:
    """One step: feed `last`, return the next token's logits (B, V)."""
    rows.mask = pad(rows.mask, (0, 1), value=True)
    return _forward(model, rows, rows.last.unsqueeze(1))[:, -1]


def _padded(
    model: Any, prompts: Sequence[Sequence[int]], owners: Sequence[Any], most: int | None
) -> tuple[Rows, Tensor]:
    """Rows with an empty cache and the mask of the whole prompts, and ids (B, T), on the model's device."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    device = next(model.parameters()).device
    return Rows(growing_cache(most), mask.to(device), ids[:, -1].to(device), list(owners)), ids.to(device)


def _forward(model: Any, rows: Rows, ids: Tensor, *, keep: int = 1) -> Tensor:
    """Logits of the last `keep` places (0: of all) of ids (B, T), whose mask the rows hold."""
    mask = rows.mask.long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, cache_name(model): rows.cache}
    logits: Tensor = model(**inputs, use_cache=True, logits_to_keep=keep).logits
    return logits
