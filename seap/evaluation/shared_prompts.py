"""Multiple choice with each question read once: its keys and values serve all of its choices.

Shapes: N rows, P tokens that an item's rows share, R tokens of a row's rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seap.evaluation.metrics import Row, fit_batch_tokens, halving, log_likelihoods
from seap.models.modes import cache_name

WORTH = 8  # shared tokens; two passes for fewer save nothing
ALIKE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of a log-likelihood, relative, read in one pass and in two
ALIKE_IN_16_BITS = 5e-2


@dataclass(frozen=True)
class Asked:
    """An item's rows: `places` among all rows, what they share, and what of each is left. starts: within the rest."""

    places: tuple[int, ...]
    shared: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """That a pass over it holds."""
        return len(self.rests) * (len(self.shared) + max(map(len, self.rests)))


def likelihoods_of_choices(
    model: Any, rows: Sequence[Row], sizes: Sequence[int], *, batch_tokens: int | None = None
) -> list[float]:
    """Summed log-likelihood (nats) of the scored tokens of each row. sizes: how many rows in turn are one item's.

    The figures are those of `log_likelihoods` but for rounding. An item of each test is scored both ways, and where the
    two differ, or a model takes no cache, all rows are read whole.
    """
    asked = [_asked(rows, start, size) for start, size in _spans(sizes)]
    worth = [item for item in asked if len(item.shared) >= WORTH and len(item.places) > 1]
    if not worth or not _alike(model, rows, min(worth, key=lambda item: item.num_tokens)):
        return [total for total, _ in log_likelihoods(model, rows, batch_tokens=batch_tokens)]
    left = sorted(set(range(len(rows))) - {place for item in worth for place in item.places})
    found = dict(halving(lambda limit: _shared(model, worth, limit), batch_tokens or fit_batch_tokens(model)))
    others = log_likelihoods(model, [rows[place] for place in left], batch_tokens=batch_tokens)
    found |= {place: total for place, (total, _) in zip(left, others, strict=True)}
    return [found[place] for place in range(len(rows))]


def _spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for size in sizes:
        yield start, size
        start += size


def _asked(rows: Sequence[Row], start: int, size: int) -> Asked:
    """Shared is what all begin with, up to the token before the first one that is scored, whose logits are needed."""
    own = rows[start : start + size]
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(row.ids for row in own), strict=False))
    length = min(sum(1 for _ in alike), *(row.start - 1 for row in own))
    rests = tuple(tuple(row.ids[length:]) for row in own)
    return Asked(
        tuple(range(start, start + size)), tuple(own[0].ids[:length]), rests, tuple(row.start - length for row in own)
    )


def _alike(model: Any, rows: Sequence[Row], item: Asked) -> bool:
    """Whether an item read in two passes gives what it gives in one."""
    whole = [total for total, _ in log_likelihoods(model, [rows[place] for place in item.places])]
    try:
        found = _shared(model, [item], item.num_tokens)
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, KeyError, ValueError, RuntimeError, NotImplementedError):
        return False  # no cache, or one that can't be spread over rows
    allowed = ALIKE.get(next(model.parameters()).dtype, ALIKE_IN_16_BITS)
    return all(abs(found[p] - total) <= allowed * (1 + abs(total)) for p, total in zip(item.places, whole, strict=True))


def _shared(model: Any, asked: Sequence[Asked], batch_tokens: int) -> dict[int, float]:
    """Row's place → log-likelihood, in batches of items whose shared parts are of like length."""
    found: dict[int, float] = {}
    batch: list[Asked] = []
    for item in sorted(asked, key=lambda one: len(one.shared), reverse=True):
        if batch and _size([*batch, item]) > batch_tokens:
            found |= _batch(model, batch)
            batch = []
        batch.append(item)
    return found | _batch(model, batch)


def _size(batch: Sequence[Asked]) -> int:
    """Tokens of what is shared, and keys and values of all rows."""
    shared, rest = max(len(item.shared) for item in batch), max(len(r) for item in batch for r in item.rests)
    return len(batch) * shared + sum(len(item.rests) for item in batch) * (shared + rest)


@torch.no_grad()
def _batch(model: Any, batch: Sequence[Asked]) -> dict[int, float]:
    """Both passes. What is shared is padded on the left, so that each row's rest follows it without a gap."""
    device, name = next(model.parameters()).device, cache_name(model)
    width = max(len(item.shared) for item in batch)
    ids = _padded([item.shared for item in batch], width, left=True)
    mask = _padded([[1] * len(item.shared) for item in batch], width, left=True)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    first = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    first = {key: value.to(device) for key, value in first.items()}
    cache = getattr(model(**first, use_cache=True, logits_to_keep=1), name)
    owners = torch.tensor([i for i, item in enumerate(batch) for _ in item.rests])
    cache.reorder_cache(owners.to(device))

    rests = [rest for item in batch for rest in item.rests]
    longest = max(map(len, rests)) - 1
    read = _padded([rest[:-1] for rest in rests], longest)
    seen = _padded([[1] * (len(rest) - 1) for rest in rests], longest)
    lengths = torch.tensor([len(item.shared) for item in batch])[owners]
    second = {
        "input_ids": read,
        "attention_mask": torch.cat([mask[owners], seen], dim=1),
        "position_ids": lengths[:, None] + torch.arange(longest)[None],
    }
    second = {key: value.to(device) for key, value in second.items()}
    logits = model(**second, **{name: cache}, use_cache=True).logits  # (N, R − 1, V)
    return _summed(logits, rests, batch)


def _summed(logits: Tensor, rests: Sequence[Sequence[int]], batch: Sequence[Asked]) -> dict[int, float]:
    places = [place for item in batch for place in item.places]
    starts = torch.tensor([start for item in batch for start in item.starts])
    targets = _padded([rest[1:] for rest in rests], logits.shape[1])
    lengths, reach = torch.tensor([len(rest) for rest in rests]), torch.arange(1, logits.shape[1] + 1)[None]
    scored = (reach >= starts[:, None]) & (reach < lengths[:, None])
    inside = scored.to(logits.device)
    losses = functional.cross_entropy(logits[inside].float(), targets.to(logits.device)[inside], reduction="none")
    parts = losses.cpu().double().split(scored.sum(1).tolist())
    return {place: -float(part.sum()) for place, part in zip(places, parts, strict=True)}


def _padded(rows: Sequence[Sequence[int]], width: int, *, left: bool = False) -> Tensor:
    """(N, width) of zeros and rows, at the right where `left` is padded."""
    pads = [[0] * (width - len(row)) for row in rows]
    return torch.tensor(
        [[*pad, *row] if left else [*row, *pad] for pad, row in zip(pads, rows, strict=True)], dtype=torch.long
    )
