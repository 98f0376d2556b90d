"""Promises hold as often as they say, on synthetic pairs whose truth is known by construction."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from seap.evidence.promise import (
    Damage,
    Levels,
    accuracy_drop,
    disagreement,
    largest,
    loss_increase,
    more_texts,
    texts_needed,
)

Draws = NDArray[np.float64]
RUNS = 1000
SIZES = (8, 20, 50)


def enough(held: int, runs: int = RUNS, confidence: float = 0.95) -> bool:
    """Coverage of at least `confidence`, less two Monte Carlo standard errors."""
    return held / runs >= confidence - 2 * (confidence * (1 - confidence) / runs) ** 0.5


# Growth of a text's loss, relative; every one has mean 0.03. Skewness 0, 1, 2, 2.8, 6.2 and 2.7.
GROWTH: dict[str, Callable[[np.random.Generator, tuple[int, int]], Draws]] = {
    "normal": lambda random, shape: random.normal(0.03, 0.03, shape),
    "some better": lambda random, shape: random.normal(0.01, 0.02, shape) + random.exponential(0.02, shape),
    "exponential": lambda random, shape: random.exponential(0.03, shape),
    "gamma": lambda random, shape: random.gamma(0.5, 0.06, shape),
    "lognormal": lambda random, shape: random.lognormal(np.log(0.03) - 0.5, 1, shape),
    "one in ten": lambda random, shape: 0.01 + 0.2 * (random.random(shape) < 0.1),
}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", GROWTH)
def test_the_bound_on_the_loss_covers(kind: str, n: int) -> None:
    """Texts of unequal length (up to a window of 512) and difficulty; growth is independent of both."""
    random = np.random.default_rng(n)
    lengths = np.clip(random.lognormal(5, 0.8, (RUNS, n)), 10, 512)
    dense = lengths * random.gamma(20, 3 / 20, (RUNS, n))
    pruned = dense * (1 + GROWTH[kind](random, (RUNS, n)))
    bounds = [loss_increase(before, after).upper(0.95, draws=1000) for before, after in zip(dense, pruned, strict=True)]
    assert enough(sum(bound >= 0.03 for bound in bounds))


@pytest.mark.parametrize("n", SIZES)
def test_the_bound_on_the_accuracy_drop_covers_exactly(n: int) -> None:
    """No simulation: the coverage is summed over every outcome of lost and won items, for truths at extremes too."""
    lost, won = (grid.ravel() for grid in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    lost, won = lost[lost + won <= n], won[lost + won <= n]
    bounds = []
    for a, b in zip(lost.tolist(), won.tolist(), strict=True):
        values = [1.0] * a + [-1.0] * b + [0.0] * (n - a - b)
        bounds.append(Damage(tuple(values), (1.0,) * n, (1.0, 1.0)).upper(0.95, draws=2000))
    for p in (0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.99):
        for q in (0.0, 0.001, 0.01, 0.05, 0.2, 0.5):
            if p + q < 0.999:
                chances = stats.multinomial.pmf(np.stack([lost, won, n - lost - won], 1), n, [p, q, 1 - p - q])
                assert chances[np.asarray(bounds) >= p - q].sum() >= 0.945, (p, q)  # bounds are drawn: ± 0.005


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rate", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("clustered", [0.5, 5, 50])
def test_the_bound_on_disagreement_covers(n: int, rate: float, clustered: float) -> None:
    """Every text has a rate of its own, beta distributed about the true one; a small `clustered` makes them unlike."""
    random = np.random.default_rng(n)
    tokens = np.clip(random.lognormal(5, 0.8, (RUNS, n)), 10, 512).astype(int)
    rates = random.beta(rate * clustered, (1 - rate) * clustered, (RUNS, n))
    differing = random.binomial(tokens, rates)
    bounds = [disagreement(a, b).upper(0.95, draws=1000) for a, b in zip(differing, tokens, strict=True)]
    assert enough(sum(bound >= rate for bound in bounds))


def test_without_gains_the_bound_is_clopper_and_pearsons() -> None:
    for lost, n in ((0, 10), (3, 50), (20, 400)):
        exact = stats.beta.ppf(0.95, lost + 1, n - lost)
        drawn = Damage((1.0,) * lost + (0.0,) * (n - lost), (1.0,) * n, (1.0, 1.0)).upper(0.95)
        assert drawn == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(("n", "spread"), [(20, 1.0), (100, 0.3)])
def test_the_final_promise_holds(n: int, spread: float) -> None:
    """The search looks at up to 40 sparsities with the same texts; what it promises is still true 95% of the time."""
    random = np.random.default_rng(n)
    sparsities = np.arange(1, 37) * 0.025
    true, bound = 0.4 * sparsities**2, 0.05
    levels, held, found = Levels.of(0.95, len(sparsities)), 0, []
    for _ in range(RUNS // 3):
        dense = np.clip(random.lognormal(5, 0.8, n), 10, 512)
        texts = random.lognormal(-(spread**2) / 2, spread, n)  # hurt alike at every sparsity, and each a little anew
        seen: dict[int, Damage] = {}

        def certified(i: int, level: float) -> bool:
            if i not in seen:  # noqa: B023
                growth = true[i] * texts * random.gamma(20, 1 / 20, n)  # noqa: B023
                seen[i] = loss_increase(dense, dense * (1 + growth))  # noqa: B023
            return seen[i].upper(level, draws=500) <= bound  # noqa: B023

        chosen = largest(certified, len(sparsities), levels)
        found.append(chosen)
        held += chosen < 0 or true[chosen] <= bound
    assert enough(held, RUNS // 3)
    assert n < 100 or np.median(found) >= 7  # 0.2 of a true 0.35: it promises something


def test_the_search_finds_the_largest_certified_sparsity() -> None:
    levels = Levels.of(0.95, 40)
    for last in (-1, 0, 7, 38, 39):
        asked: list[int] = []

        def certified(i: int, level: float) -> bool:
            asked.append(i)  # noqa: B023
            return i <= last  # noqa: B023

        assert largest(certified, 40, levels) == last
        assert len(set(asked)) <= 7
    assert largest(lambda i, level: i <= (3 if level == levels.bisection else 6), 40, levels) == 6
    assert largest(lambda i, level: True, 0, levels) == -1


def test_the_levels_share_the_error_out() -> None:
    levels = Levels.of(0.95, 36)  # 6 steps of bisection
    assert 6 * (1 - levels.bisection) + (1 - levels.climb) == pytest.approx(0.05)


def test_ratios_are_of_sums() -> None:
    found = loss_increase([10.0, 30.0], [11.0, 32.0])
    assert found.estimate == pytest.approx(3 / 40) and found.worst == (5.0, 20.0)
    # residuals 1 − 0.075·10 and 2 − 0.075·30, ± 0.25: √(2 · 2 · 0.0625) / 40
    assert found.stderr == pytest.approx(0.5 / 40)
    assert accuracy_drop([1, 1, 0, 1], [1, 0, 1, 0]).estimate == 0.25
    assert disagreement([1, 0], [10, 30]).estimate == 1 / 40


def test_how_many_texts_it_takes() -> None:
    """0 of n lost is within 1% with 95% confidence from 299 items on, by Clopper and Pearson."""
    assert texts_needed(0.01, 0.95) == 299
    assert stats.beta.ppf(0.95, 1, 299) <= 0.01 < stats.beta.ppf(0.95, 1, 298)
    assert texts_needed(0.5, 0.95, unseen=0.25) == 2
    damage = disagreement([1] * 10 + [0] * 190, [10] * 200)
    wanted = more_texts(damage, 0.02, 0.95)
    assert wanted is not None
    grown = disagreement([1] * (wanted // 20) + [0] * (wanted - wanted // 20), [10] * wanted)
    assert grown.upper(0.95) == pytest.approx(0.02, rel=0.1)
    assert more_texts(damage, 0.004, 0.95) is None
