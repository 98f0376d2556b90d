"""What the text decoder inside a multimodal model reads of rows with images: the states of text and images together.

The whole model runs up to its decoder, on what its processor made, and what it would call the decoder with is kept with
the batch: the tower for images runs once however often a batch is run. Shapes: B rows, T tokens.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seap.activations.handed import handed_on, stubbed
from seap.models.arch import Arch
from seap.models.decoders import wrapper_of
from seap.text.corpus import Batch
from seap.text.rows import TYPES

DROPPED = ("cache", "past_key_values", "return_dict", "labels", "logits_to_keep", "use_cache")


class _ReachedError(Exception):
    """Raised at the decoder's door."""


def looked(arch: Arch, batch: Batch) -> dict[str, Any]:
    """The keywords of the decoder for a batch with images."""
    if not batch.looked:
        batch.looked.update(_look(arch, batch))
    return {**batch.looked, "use_cache": False}


def _look(arch: Arch, batch: Batch) -> dict[str, Any]:
    whole, device = wrapper_of(arch.model), next(arch.model.parameters()).device
    whole.to(device)  # its towers, where the decoder was moved
    given: dict[str, Any] = {}

    def stop(*args: Any, **kwargs: Any) -> Any:
        assert not args, "a decoder that is called with places rather than keywords"
        given.update(kwargs)
        raise _ReachedError

    ids, mask = batch.ids.to(device), batch.mask.long().to(device)
    with torch.no_grad(), stubbed([arch.model.base_model], {0: stop}), contextlib.suppress(_ReachedError):
        whole(input_ids=ids, attention_mask=mask, use_cache=False, **_together(arch, batch, device))
    return {name: value for name, value in given.items() if value is not None and name not in DROPPED}


def added(arch: Arch, batch: Batch, states: Sequence[Tensor]) -> list[Tensor | None]:
    """What the model adds to the states before each layer, as some do for images; None where it is nothing.

    states: those that came before each layer where every layer hands on what it gets.
    """
    none: list[Tensor | None] = [None] * len(states)
    changed = [i for i in range(1, len(states)) if not torch.equal(states[i], states[i - 1])]
    if not changed:
        return none
    more: list[Tensor] = []

    def silent(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        more.append(hidden)
        return handed_on(arch, torch.zeros_like(hidden))

    with stubbed(arch.layers, dict.fromkeys(range(len(states)), silent)):
        arch.model.base_model(**looked(arch, batch))
    return [more[i] if i in changed else None for i in range(len(states))]


def _together(arch: Arch, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The tensors of all rows, one after the other; what there is of each token, padded as the ids are."""
    width, dtype, found = batch.ids.shape[1], _tower_dtype(arch), {}
    for name in batch.seen[0]:
        parts = [row[name] for row in batch.seen]
        if TYPES in name:
            parts = [nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        joined = torch.cat(parts).to(device)
        found[name] = joined.to(dtype) if joined.is_floating_point() else joined
    return found


def _tower_dtype(arch: Arch) -> torch.dtype:
    """Of what reads images: the decoder may be computed with in another."""
    own = {id(parameter) for parameter in arch.model.parameters()}
    others = (p.dtype for p in wrapper_of(arch.model).parameters() if id(p) not in own and p.is_floating_point())
    found: torch.dtype = next(others, arch.model.dtype)
    return found
