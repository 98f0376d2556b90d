"""What can be promised of a pruned model: bounds on its damage, and the largest sparsity that keeps within one.

A damage is a ratio of sums over held-out texts, paired with the dense model: Σ a_i / Σ b_i. For the loss a_i is what
text i's summed loss grows by and b_i the dense one; for accuracy a_i is 1 where a right answer was lost, −1 where one
was won, and b_i = 1; for agreement a_i counts the tokens where the two models' first choices differ, b_i all tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

UNSEEN_LOSS = 0.25
WORSE_THAN_SEEN = 2.0
DRAWS = 10_000
SEARCH_SHARE = 0.2  # of the error allowed, spent on the bisection; the rest is for the climb


@dataclass(frozen=True)
class Damage:
    """Σ parts / Σ sizes over texts; `worst` is part and size of the worst text that was not seen."""

    parts: tuple[float, ...]
    sizes: tuple[float, ...]
    worst: tuple[float, float]

    @property
    def n(self) -> int:
        return len(self.parts)

    @property
    def estimate(self) -> float:
        return sum(self.parts) / sum(self.sizes)

    @property
    def stderr(self) -> float:
        """By linearisation, over the texts."""
        residuals = np.asarray(self.parts) - self.estimate * np.asarray(self.sizes)
        return float(np.sqrt((residuals**2).sum() * self.n / max(self.n - 1, 1)) / sum(self.sizes))

    def upper(self, confidence: float, *, draws: int = DRAWS) -> float:
        """A bound that the true damage stays below with this confidence (one-sided).

        The quantile of Σ w_i a_i / Σ w_i b_i over Dirichlet(1, …, 1) weights w of the n texts and `worst`: Gaffke's
        bound for the mean of a variable with a known maximum (Learned-Miller & Thomas 2019, arXiv:1905.06208), here
        for a ratio, drawn with a fixed seed. For right and wrong without gains it is Clopper and Pearson's exact
        bound. Student's t and bootstrap-t cover 55% to 94% where they say 95% on 8 to 50 texts of unequal length and
        skewed damage; this one covered 95% or more in every case tried (tests/test_promise.py). That it always does
        is conjectured, not proven.
        """
        pairs = np.array([*zip(self.parts, self.sizes, strict=True)], dtype=float)
        kinds, counts = np.unique(pairs, axis=0, return_counts=True)
        kinds, counts = np.vstack([kinds, self.worst]), np.append(counts, 1)
        generator, found = np.random.default_rng(0), []
        step = max(1, min(draws, 4_000_000 // len(kinds)))
        for start in range(0, draws, step):  # gamma variables over their sum are Dirichlet; the sum cancels here
            shape = (min(step, draws - start), len(kinds))
            alike = counts.max() == 1  # gamma(1) is the exponential, which is drawn faster
            weights = generator.standard_exponential(shape) if alike else generator.standard_gamma(counts, shape)
            found.append((weights @ kinds[:, 0]) / (weights @ kinds[:, 1]))
        return float(np.quantile(np.concatenate(found), confidence, method="higher"))


def loss_increase(dense: Sequence[float], pruned: Sequence[float]) -> Damage:
    """Relative: Σ pruned / Σ dense − 1, each the summed loss of a text (nats).

    Losses have no maximum, so one is assumed of texts not seen: their loss grows by no more than twice the largest
    growth seen, or a quarter of a mean text's loss if that is more.
    """
    growth = [after - before for before, after in zip(dense, pruned, strict=True)]
    mean = sum(dense) / len(dense)
    return Damage(tuple(growth), tuple(dense), (max(WORSE_THAN_SEEN * max(growth), UNSEEN_LOSS * mean), mean))


def accuracy_drop(dense: Sequence[float], pruned: Sequence[float]) -> Damage:
    """Share right of the dense model − of the pruned one; each 1 or 0 per item. The worst item not seen is lost."""
    lost = tuple(before - after for before, after in zip(dense, pruned, strict=True))
    return Damage(lost, (1.0,) * len(lost), (1.0, 1.0))


def disagreement(differing: Sequence[int], tokens: Sequence[int]) -> Damage:
    """Share of tokens where the two models' first choices differ, over texts. In the worst text not seen all do."""
    longest = float(max(tokens))
    return Damage(tuple(map(float, differing)), tuple(map(float, tokens)), (longest, longest))


def texts_needed(bound: float, confidence: float, *, unseen: float = 1.0) -> int:
    """Texts (items) that it takes to promise `bound` when not one is hurt: 1 − (1 − confidence)^(1/n) ≤ bound / unseen.

    unseen: damage of the worst text not seen (`UNSEEN_LOSS` for the loss, 1 for shares).
    """
    if bound >= unseen:
        return 2
    return max(2, math.ceil(math.log(1 - confidence) / math.log1p(-bound / unseen)))


def more_texts(damage: Damage, bound: float, confidence: float) -> int | None:
    """About how many texts would certify `bound` with damage like this; None where the damage itself is above it."""
    room, width = bound - damage.estimate, damage.upper(confidence) - damage.estimate
    if room <= 0:
        return None
    sure, error = float(stats.norm.isf(1 - confidence)), damage.stderr
    rare = max(width - sure * error, 0.0) * damage.n  # of the worst text, whose weight falls as 1/n
    root = (sure * error * math.sqrt(damage.n) + math.sqrt(sure**2 * error**2 * damage.n + 4 * room * rare)) / 2 / room
    return math.ceil(root**2)


@dataclass(frozen=True)
class Levels:
    """Confidence that a step needs in each part of the search, so that all of it keeps the confidence asked for."""

    bisection: float
    climb: float

    @classmethod
    def of(cls, confidence: float, num_sparsities: int) -> "Levels":
        allowed, steps = 1 - confidence, max(1, math.ceil(math.log2(num_sparsities + 1)))
        return cls(1 - SEARCH_SHARE * allowed / steps, 1 - (1 - SEARCH_SHARE) * allowed)


def largest(certified: Callable[[int, float], bool], count: int, levels: Levels) -> int:
    """The largest of `count` growing sparsities that can be promised: its index, −1 for none.

    `certified(i, level)` says whether sparsity i's damage is within the bound with confidence `level`. First a
    bisection with Bonferroni's share of a fifth of the error for each step, then step by step upwards from there,
    stopping at the first that fails, with the other four fifths. That keeps the error of the final choice, if true
    damage never falls from one sparsity to the next:

    - the bisection. A sparsity that is too much is reached first after right answers only (a wrong "no" to a lower one
      leads below all that are too much), hence on a path that doesn't depend on the data: Bonferroni over its steps.
    - the climb. Whatever start below it, the first that is too much on the way up is the same one, tested once; to stop
      at the first failure is fixed-sequence testing (Maurer, Hothorn & Lehmacher 1995; for risk bounds Angelopoulos et
      al. 2021, arXiv:2110.01052).
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if certified(middle, levels.bisection) else (low, middle)
    while low + 1 < count and certified(low + 1, levels.climb):
        low += 1
    return low
