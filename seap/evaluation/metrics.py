"""How likely a model finds texts: log-likelihoods in batches, their means with errors, the loss.

Shapes: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from seap.activations.layerwise import model_inputs
from seap.models.arch import describe
from seap.text.corpus import Batch, batches
from seap.text.rows import CountedRow

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """A mean with its standard error over n independent texts or items."""

    value: float
    stderr: float
    n: int
    values: tuple[float, ...] = field(default=(), repr=False, compare=False)  # of each item, where it is a mean
    sums: tuple[tuple[float, float], ...] = field(default=(), repr=False, compare=False)  # of each row of a ratio


@dataclass(frozen=True)
class Row:
    """Token ids, of which those from `start` on are scored (never the first one: nothing predicts it).

    Of a `CountedRow` only those that a counted place predicts.
    """

    ids: tuple[int, ...]
    start: int = 1


def mean_of(values: Sequence[float]) -> Figure:
    data = torch.tensor(values, dtype=torch.float64)
    spread = float(data.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Figure(float(data.mean()), spread, len(values), tuple(values))


def ratio_of(sums: Sequence[tuple[float, int]]) -> Figure:
    """Σ a / Σ b over rows, such as loss per token; standard error by linearisation over the rows."""
    data = torch.tensor(sums, dtype=torch.float64)
    total, n = float(data[:, 1].sum()), len(data)
    value = float(data[:, 0].sum()) / total
    residuals = data[:, 0] - value * data[:, 1]
    stderr = float(residuals.square().sum().sqrt()) / total * math.sqrt(n / (n - 1)) if n > 1 else math.nan
    return Figure(value, stderr, n, sums=tuple((float(a), float(b)) for a, b in sums))


def fit_batch_tokens(model: Any) -> int:
    """How many tokens a forward pass may hold: logits in float32, thrice, in a quarter of the free memory."""
    parameter = next(model.parameters())
    if parameter.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(parameter.device)[0], 8192
    else:
        import psutil

        free, most = psutil.virtual_memory().available, 2048  # more is slower on a CPU
    return int(min(max(free / 4 / (12 * model.config.vocab_size), 256), most))


def halving(run: Callable[[int], Result], batch_tokens: int) -> Result:
    """Run with so many tokens a batch, and with half as many whenever the GPU runs out of memory."""
    while True:
        try:
            return run(batch_tokens)
        except torch.cuda.OutOfMemoryError:
            if batch_tokens < 2:
                raise
            torch.cuda.empty_cache()
            batch_tokens //= 2


def windows(ids: Sequence[int], *, length: int, stride: int | None = None) -> Iterator[Row]:
    """Cut a text into windows of `length` tokens; each scores its last `stride` (the first window all of it)."""
    stride = stride or length
    for begin in range(0, max(len(ids) - 1, 1), stride):
        end = min(begin + length, len(ids))
        part = ids[begin:end]
        yield Row(
            part if isinstance(part, CountedRow) else tuple(part),
            1 if begin == 0 or stride == length else length - stride,
        )
        if end == len(ids):
            return


def predictions(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict tokens 1 … T−1, (B, T−1, V) in float32, and the ids they predict (B, T−1)."""
    device = next(model.parameters()).device
    if batch.seen:
        return model(**model_inputs(describe(model), batch)).logits[:, :-1].float(), batch.ids[:, 1:].to(device)
    ids, mask = batch.ids.to(device), batch.mask.long().to(device)
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False).logits
    return logits.float(), ids[:, 1:]


def scored_tokens(batch: Batch, starts: Sequence[int]) -> Tensor:
    """Bool (B, T−1): real tokens at or after each row's start that a counted place predicts."""
    positions = torch.arange(1, batch.ids.shape[1])
    return batch.predicting & (positions[None] >= torch.tensor(starts)[:, None])


def in_batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches with the places of their rows in `rows`."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids), reverse=True)
    done = 0
    for batch in batches([rows[i].ids for i in order], batch_tokens=batch_tokens):
        yield order[done : done + len(batch.ids)], batch
        done += len(batch.ids)


@torch.no_grad()
def log_likelihoods(model: Any, rows: Sequence[Row], *, batch_tokens: int | None = None) -> list[tuple[float, int]]:
    """Summed log-likelihood (nats) and number of the scored tokens of each row, in order."""

    def run(limit: int) -> list[tuple[float, int]]:
        found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        for places, batch in in_batches(rows, limit):
            logits, targets = predictions(model, batch)
            scored = scored_tokens(batch, [rows[i].start for i in places])
            inside, counts = scored.to(logits.device), scored.sum(1).tolist()
            losses = functional.cross_entropy(logits[inside], targets[inside], reduction="none").cpu().double()
            for place, part in zip(places, losses.split(counts), strict=True):
                found[place] = (-float(part.sum()), len(part))
        return found

    return halving(run, batch_tokens or fit_batch_tokens(model))


def loss(model: Any, rows: Sequence[Row], *, batch_tokens: int | None = None) -> Figure:
    """Mean loss per scored token over all rows (nats); e to its power is the perplexity. n is the number of rows."""
    return ratio_of([(-total, count) for total, count in log_likelihoods(model, rows, batch_tokens=batch_tokens)])
