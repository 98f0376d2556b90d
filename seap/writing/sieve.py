"""Which written texts are fit to calibrate on: no copies, no loops, and of a perplexity like that of real text.

Pure functions over token ids and strings; what a limit is, is learned from example texts where there are some.
"""

import math
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

SHINGLE = 5  # tokens; shorter ones are shared by any two texts of a kind
GRAM = 4
COPIED = 0.6  # share of a text's shingles found in one other text
TAILS = 0.05  # of the perplexities outside of the band on either side

REASONS = ("short", "garbled", "loop", "perplexity too low", "perplexity too high", "copy of an example", "duplicate")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A written text and what it is judged by. loss: nats per token under the model, without context."""

    text: str
    ids: tuple[int, ...]
    loss: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a text may have; `lowest` and `highest` are losses in nats per token."""

    min_tokens: int
    repeated: float
    compression: float
    lowest: float
    highest: float


# 99 of 100 texts of 256 tokens keep these, whatever their kind but code, whose examples raise them.
ABSOLUTE = Limits(min_tokens=2, repeated=0.3, compression=3.0, lowest=-math.inf, highest=math.inf)


def repeated_share(ids: Sequence[Hashable], n: int = GRAM) -> float:
    """Share of the n-grams that were there before: 0 where none comes twice, towards 1 in a loop."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compression(text: str) -> float:
    """How many times smaller zlib makes it; loops of any period give high values."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 9))


def shingles(ids: Sequence[Hashable], n: int = SHINGLE) -> frozenset[tuple[Hashable, ...]]:
    """All runs of n tokens; of a shorter text, the text."""
    return frozenset(tuple(ids[i : i + n]) for i in range(max(len(ids) - n + 1, 1)))


@dataclass
class Shelf:
    """Texts by their shingles, so that the likest one to a new text is found without comparing to each."""

    sizes: list[int] = field(default_factory=list)
    holders: dict[tuple[Hashable, ...], list[int]] = field(default_factory=dict)

    def add_(self, ids: Sequence[Hashable]) -> None:
        own = shingles(ids)
        for shingle in own:
            self.holders.setdefault(shingle, []).append(len(self.sizes))
        self.sizes.append(len(own))

    def overlap(self, ids: Sequence[Hashable]) -> float:
        """max over the texts here of |A ∩ B| / min(|A|, |B|): 1 also where one text contains the other."""
        own = shingles(ids)
        shared = Counter(place for shingle in own for place in self.holders.get(shingle, ()))
        return max((count / min(len(own), self.sizes[place]) for place, count in shared.items()), default=0.0)


def band(losses: Sequence[float], *, tails: float = TAILS, widen: float = 0.0) -> tuple[float, float]:
    """The losses (nats) without their tails on either side, widened by so many nats."""
    values = torch.tensor(losses, dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([tails, 1 - tails], dtype=torch.float64)).tolist()
    return low - widen, high + widen


def limits_of(examples: Sequence[Candidate], *, min_tokens: int, widen: float) -> Limits:
    """Limits that the examples themselves would (but for their tails, which may be odd) keep."""
    lowest, highest = band([example.loss for example in examples], widen=widen)
    return Limits(
        min_tokens=min_tokens,
        repeated=max(ABSOLUTE.repeated, band([repeated_share(example.ids) for example in examples])[1]),
        compression=max(ABSOLUTE.compression, band([compression(example.text) for example in examples])[1]),
        lowest=lowest,
        highest=highest,
    )


def fault(candidate: Candidate, limits: Limits) -> str | None:
    """What is wrong with a text by itself, one of REASONS; None where nothing is."""
    if len(candidate.ids) < limits.min_tokens:
        return "short"
    if "\ufffd" in candidate.text:
        return "garbled"
    if repeated_share(candidate.ids) > limits.repeated or compression(candidate.text) > limits.compression:
        return "loop"
    if not candidate.loss >= limits.lowest:
        return "perplexity too low"
    return None if candidate.loss <= limits.highest else "perplexity too high"


@dataclass
class Sieve:
    """Judges texts one after the other and remembers those that passed."""

    limits: Limits
    examples: Shelf
    passed: Shelf = field(default_factory=Shelf)

    def judge_(self, candidate: Candidate) -> str | None:
        """One of REASONS, or None for a text that passes and is remembered."""
        found = fault(candidate, self.limits)
        if found is None and self.examples.overlap(candidate.ids) >= COPIED:
            found = "copy of an example"
        if found is None and self.passed.overlap(candidate.ids) >= COPIED:
            found = "duplicate"
        if found is None:
            self.passed.add_(candidate.ids)
        return found
