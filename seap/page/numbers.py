"""Means over tasks and seeds, their errors, and how numbers are written on the page.

A mean is over tasks × seeds. Its standard error counts each task once, however many seeds it has, since seeds share
their task's test text; with one task it is over seeds. Differences between methods are paired by task and seed, and are
called noise inside the 95% interval of Student's t.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Cells = dict[tuple[str, int], float]
STUDENT_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # by degrees of freedom, from 1


@dataclass(frozen=True)
class Mean:
    """A mean, its standard error (nan from one task and one seed) and the number of independent parts behind it."""

    value: float
    stderr: float
    parts: int

    @property
    def certain(self) -> bool | None:
        """Whether 0 lies outside the 95% interval; None where that can't be known."""
        if not math.isfinite(self.stderr) or not math.isfinite(self.value):
            return None
        return abs(self.value) > self.half_width

    @property
    def half_width(self) -> float:
        """Of the 95% interval."""
        return STUDENT_95[min(self.parts - 1, len(STUDENT_95)) - 1] * self.stderr


def cells(rows: Sequence[Row], key: str) -> Cells:
    """A value per task and seed; rows that share both are averaged, rows without the value left out."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.get(key) is not None:
            found.setdefault((row["task"], row["seed"]), []).append(row[key])
    return {place: average(values) for place, values in found.items()}


def mean(values: Cells) -> Mean | None:
    """Over all cells; the error is clustered by task: √(G/(G−1) · Σ_task (Σ_seed residual)²) / n, G tasks, n cells."""
    if not values:
        return None
    value = average(values.values())
    parts: dict[Any, float] = {}
    alone = len({task for task, _ in values}) == 1
    for (task, seed), one in values.items():
        part = seed if alone else task
        parts[part] = parts.get(part, 0.0) + one - value
    count = len(parts)
    if count == 1:
        return Mean(value, math.nan, 1)
    squares = sum(p * p for p in parts.values())
    return Mean(value, math.sqrt(count / (count - 1) * squares) / len(values), count)


def paired(first: Cells, second: Cells) -> Mean | None:
    """Mean of first − second over the tasks and seeds that both have."""
    return mean({place: first[place] - second[place] for place in first if place in second})


def average(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def with_error(found: Mean | None, digits: int = 3, *, sign: bool = False, scale: float = 1) -> str:
    if found is None:
        return "–"
    value = number(found.value * scale, digits, sign=sign)
    return f"{value} ± {number(found.stderr * scale, digits)}" if math.isfinite(found.stderr) else value


def interval(found: Mean, digits: int = 3, *, scale: float = 1, sides: tuple[str, str]) -> str:
    """`95% interval 0.377 to 0.427 lower`, or from one side to the other; sides: of values below and above 0."""
    ends = sorted((scale * (found.value - found.half_width), scale * (found.value + found.half_width)), key=abs)
    first, last = (number(abs(end), digits) for end in ends)
    if (ends[0] < 0) == (ends[1] < 0):
        return f"95% interval {first} to {last} {sides[ends[1] > 0]}"
    return f"95% interval {last} {sides[ends[1] > 0]} to {first} {sides[ends[0] > 0]}"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
