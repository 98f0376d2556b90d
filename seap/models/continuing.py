"""What a model writes after a batch of prompts, rows that have ended leaving the batch.

`generate` runs all rows until the last one ends, and a row that goes round in circles never does: on a CPU, where a
step costs by the row, most of the time then goes into rows that are done. Here it runs some tokens at a time, on the
cache that it has left. Shapes: B prompts, T tokens of the longest, N new ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seap.models.families import FAMILIES
from seap.models.modes import cache_name

PIECE = 32  # tokens that are written before it is looked at which rows have ended
# settings of generation that look at where a call began or ends, and those that make several texts of a prompt
BY_THE_CALL = ("min_new_tokens", "begin_suppress_tokens", "forced_eos_token_id", "exponential_decay_length_penalty")
SEVERAL = ("num_beams", "num_return_sequences")

Ended = Callable[[list[int]], bool]


def ends_of(model: Any, tokenizer: Any = None) -> list[int]:
    """The tokens after which a model has said all: its own, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    found = [*(own if isinstance(own, list) else [own]), None if tokenizer is None else tokenizer.eos_token_id]
    return sorted({token for token in found if token is not None})


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """The new tokens of each prompt (token ids), up to the one that ends it; options as in `continued`."""
    ends, width = ends_of(model, tokenizer), max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(row)) + [*row] for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    options = {"ends": ends, "pad": pad, "most": max_new_tokens, **options}
    return [_up_to_end(row, ends) for row in continued(model, ids, mask, **options)[:, width:].tolist()]


@torch.no_grad()
def continued(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    *,
    ends: Sequence[int],
    pad: int,
    most: int,
    has_ended: Ended | None = None,
    **options: Any,
) -> Tensor:
    """ids (B, T), padded on the left as mask says, with at most `most` new tokens (B, T + N), after a row's end `pad`.

    has_ended: of the new tokens of a row, whether what follows isn't wanted; it is asked now and then, so that some may
    follow nonetheless. options: of `generate`. Greedily what is written is what `generate` writes (products of batches
    of other sizes may round otherwise); sampled texts are others, since rows that have left draw nothing.
    """
    made = torch.cat([ids, ids.new_full((len(ids), most), pad)], dim=1)
    places, end, cache = torch.arange(len(ids), device=ids.device), ids.shape[1], None
    start, last = end, end + most
    step, called = PIECE, cache_name(model)
    if not _goes_in_pieces(model):
        step = most
        if has_ended is not None:  # asked at every token, so that a batch whose rows have all ended does end
            options["stopping_criteria"] = [_stopping(has_ended, start)]
    while end < last:
        given = {"attention_mask": mask, "pad_token_id": pad, "eos_token_id": [*ends] or None, **options}
        given |= {"max_new_tokens": min(step, last - end), "return_dict_in_generate": True}
        found = model.generate(made[places, :end], **given, **({} if cache is None else {called: cache}))
        new = found.sequences[:, end:]
        made[places, end : end + new.shape[1]] = new
        end += new.shape[1]
        written = enumerate(made[places, start:end].tolist())
        left = [row for row, own in written if not ({*ends} & {*own} or (has_ended and has_ended(own)))]
        if end == last or not left:
            break
        cache = _rows_of(found[called], left, len(places))
        mask, places = torch.cat([mask, mask.new_ones(new.shape)], dim=1)[left], places[left]
    return made[:, :end]


def _stopping(has_ended: Ended, start: int) -> Callable[..., Tensor]:
    """As `generate` asks: ids (B, T + N), of which the first `start` are the prompt's → which rows have ended (B,)."""

    def stopping(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([has_ended(row) for row in ids[:, start:].tolist()], device=ids.device)

    return stopping


def _goes_in_pieces(model: Any) -> bool:
    """Whether its cache is known to hold keys and values alone, of which rows can be taken, and no setting minds."""
    family, settings = FAMILIES.get(model.config.model_type), model.generation_config
    minds = any(getattr(settings, name, None) is not None for name in BY_THE_CALL)
    minds |= any((getattr(settings, name, None) or 1) > 1 for name in SEVERAL)
    return family is not None and not family.mixers and not minds


def _rows_of(cache: Any, rows: list[int], of: int) -> Any:
    """The cache of some of its rows; None, which has all computed anew, of one of a fixed size or another kind."""
    from transformers import DynamicCache

    if not isinstance(cache, DynamicCache):
        return None
    if len(rows) < of:
        cache.batch_select_indices(torch.tensor(rows))
    return cache


def _up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    return ids if place is None else ids[: place + 1]
