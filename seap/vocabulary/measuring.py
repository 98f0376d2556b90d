"""What a smaller vocabulary costs on held-out text, in nats per byte against the whole one.

The vocabularies that are tried are beginnings of one order. A text whose tokens all stay is the same text to the model:
its logits are those of the whole vocabulary, and only fewer of them share the probability, so that one pass over the
held-out text serves every size. What is read otherwise is run again with the smaller model.

Shapes: B rows, T tokens, N scored tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from seap.text.corpus import batches
from seap.text.options import Calibration
from seap.text.rows import CountedRow, counted_of
from seap.vocabulary.counts import HeldText, row_of
from seap.vocabulary.embedding import cut_embeddings_
from seap.vocabulary.rewriting import Source

LOGITS = 1 << 25  # numbers of the logits of a batch, at most
STEP = 1.2  # between sizes that are tried
MULTIPLE = 64  # of tokens, which GPUs like
CONFIDENCE = 0.95  # of a bound
ROUGH = 4  # of so many texts one is run where sizes lie far apart


@dataclass(frozen=True)
class Cost:
    """What the held-out texts of a task lose, in nats per byte, and its standard error over texts."""

    nats_per_byte: float
    stderr: float
    num_texts: int

    @classmethod
    def of(cls, added: Tensor, num_bytes: Tensor) -> "Cost":
        """Of what each text loses in nats, and its bytes (both float64): the ratio of their sums."""
        mean, n = float(added.sum() / num_bytes.sum()), len(added)
        apart = (added - mean * num_bytes).square().sum() * n / max(n - 1, 1)
        return cls(mean, float(apart.sqrt() / num_bytes.sum()) if n > 1 else math.inf, n)

    @property
    def upper(self) -> float:
        """What the cost stays below with 95% confidence (Student's t); of a single text nothing is known."""
        from scipy.stats import t

        if self.stderr == 0 or self.num_texts < 2:
            return self.nats_per_byte if self.stderr == 0 else math.inf
        return self.nats_per_byte + float(t.ppf(CONFIDENCE, self.num_texts - 1)) * self.stderr


def sizes_between(least: int, most: int) -> list[int]:
    """Multiples of `MULTIPLE`, each a `STEP` above the last, and `most` itself."""
    found, size = [], float(max(least, MULTIPLE))
    while size < most:
        found.append(min(-int(-size // MULTIPLE) * MULTIPLE, most))
        size *= STEP
    return sorted({*found, most})


@dataclass
class Trial:
    """The held-out texts with the whole vocabulary, and how much the beginnings of an order cost on them."""

    model: Any
    source: Source
    order: Sequence[int]
    sizes: Sequence[int]
    held: Sequence[HeldText]
    reading: Calibration
    progress: bool = True
    tried: dict[int, dict[str, Cost]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.targets, self.shares = self._run_whole()

    def _run_whole(self) -> tuple[Tensor, Tensor]:
        """Of every text (float64): Σ of the logits of its tokens, and Σ of log Σ exp over each of the sizes and V."""
        parts = torch.tensor(self.order).split([b - a for a, b in zip([0, *self.sizes], self.sizes, strict=False)])
        targets = torch.zeros(len(self.held), dtype=torch.float64)
        shares = torch.zeros(len(self.held), len(self.sizes) + 1, dtype=torch.float64)
        rows = [text.row for text in self.held]
        for batch in scored(self.model, rows, "held-out text", self.progress):
            logits = batch.logits
            own = [logits.index_select(-1, part.to(logits.device)).logsumexp(-1).double() for part in parts]
            sums = torch.stack([*torch.stack(own).logcumsumexp(0), logits.logsumexp(-1).double()], -1)
            targets.index_add_(0, batch.owners, logits.gather(-1, batch.targets[:, None])[:, 0].double().cpu())
            shares.index_add_(0, batch.owners, sums.cpu())
        return targets, shares

    def cost(self, size: int) -> dict[str, Cost]:
        """What each task's text loses with the first `size` tokens of the order."""
        if size not in self.tried:
            self.tried[size] = self._cost(size, 1)
        return self.tried[size]

    def rough(self, size: int) -> dict[str, Cost]:
        """The same of a `ROUGH`th of each task's texts, where all of them weren't measured."""
        return self.tried[size] if size in self.tried else self._cost(size, ROUGH)

    def _cost(self, size: int, of: int) -> dict[str, Cost]:
        """By every so manieth of a task's texts."""
        kept, places = sorted(self.order[:size]), self._by_task(of)
        held = {i: self.held[i] for own in places.values() for i in own}
        rows, again = {i: text.row for i, text in held.items()}, []
        if size < len(self.order):
            smaller = self.source.smaller(kept)
            rows = {i: row_of(smaller, text.item, self.reading) for i, text in held.items()}
            again = [i for i, text in held.items() if back(rows[i], kept) != text.row]
        column = list(self.sizes).index(size)
        added = self.shares[:, column] - self.shares[:, -1]  # of texts that are read as before
        whole = self.shares[:, -1] - self.targets
        if again:
            undo = cut_embeddings_(self.model, kept)
            try:
                found = nats(self.model, [rows[i] for i in again], f"{size} tokens", self.progress)
            finally:
                undo()
            added[again] = found - whole[again]
        sizes = {task: torch.tensor([held[i].num_bytes for i in own]).double() for task, own in places.items()}
        return {task: Cost.of(added[own], sizes[task]) for task, own in places.items()}

    def _by_task(self, of: int) -> dict[str, list[int]]:
        """Places of every so manieth text of each task."""
        places: dict[str, list[int]] = {}
        for i, text in enumerate(self.held):
            places.setdefault(text.task, []).append(i)
        return {task: own[::of] for task, own in places.items()}

    def smallest(self, tolerance: float, likely: int) -> int:
        """The smallest size that costs every task at most so much, with 95% confidence, by bisection.

        `likely` is tried first.
        """
        low, high, step = -1, len(self.sizes) - 1, 1  # the largest is always good enough
        middle = min(next((i for i, size in enumerate(self.sizes) if size >= likely), high), high - 1)
        while high - low > 1:
            middle = middle if low < middle < high else (low + high) // 2
            if max(cost.upper for cost in self.cost(self.sizes[middle]).values()) <= tolerance:
                high, middle = middle, middle - step
            else:
                low, middle = middle, middle + step
            step *= 2
        return self.sizes[high]


def back(row: Sequence[int], kept: Sequence[int]) -> tuple[int, ...]:
    """A row of new ids in the old ones."""
    ids, counts = [kept[i] for i in row], counted_of(row)
    return tuple(ids) if counts is None else CountedRow(ids, counts)


@dataclass(frozen=True)
class Scored:
    """Scored tokens of a batch: logits (N, V) in float32, what they predict (N,), the row that each is of (N,)."""

    logits: Tensor
    targets: Tensor
    owners: Tensor


@torch.no_grad()
def scored(model: Any, rows: Sequence[tuple[int, ...]], what: str, progress: bool) -> Iterator[Scored]:
    """The scored tokens of all rows, in batches whose logits are not many."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    limit = max(LOGITS // model.config.vocab_size, 64)
    device, done = next(model.parameters()).device, 0
    with tqdm(total=len(rows), desc=what, unit="text", disable=not progress, leave=False) as bar:
        for batch in batches([rows[i] for i in order], batch_tokens=limit):
            owners = torch.tensor(order[done : done + len(batch.ids)])
            ids, mask = batch.ids.to(device), batch.mask.long().to(device)
            inside = batch.predicting
            logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False).logits
            on = inside.to(device)
            yield Scored(logits[on].float(), ids[:, 1:][on], owners[:, None].expand_as(inside)[inside])
            done += len(batch.ids)
            bar.update(len(batch.ids))


def nats(model: Any, rows: Sequence[tuple[int, ...]], what: str, progress: bool) -> Tensor:
    """Σ of the losses of each row's scored tokens, float64."""
    found = torch.zeros(len(rows), dtype=torch.float64)
    for batch in scored(model, rows, what, progress):
        logits = batch.logits
        losses = logits.logsumexp(-1).double() - logits.gather(-1, batch.targets[:, None])[:, 0].double()
        found.index_add_(0, batch.owners, losses.cpu())
    return found


def told(costs: Mapping[int, Mapping[str, Cost]]) -> list[dict[str, Any]]:
    """What was tried, for provenance."""
    return [{"tokens": size} | said(cost) for size, cost in sorted(costs.items())]


def said(costs: Mapping[str, Cost]) -> dict[str, dict[str, float | None]]:
    """By task; what a single text says has no error."""
    errors = {task: cost.stderr if math.isfinite(cost.stderr) else None for task, cost in costs.items()}
    return {
        "nats_per_byte": {task: cost.nats_per_byte for task, cost in costs.items()},
        "nats_per_byte_stderr": errors,
    }
