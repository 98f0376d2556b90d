"""What was removed, what it cost and how that compares, in plain words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seap.page.comparison import PAPERS_OWN, Comparison, best_baseline, is_ours, main_loss
from seap.page.numbers import (
    Mean,
    Row,
    average,
    cells,
    interval,
    mean,
    number,
    paired,
    percent,
    several,
    with_error,
)


def verdict(data: Comparison | None, about: Mapping[str, Any]) -> list[str]:
    """What was removed, what it cost and how that compares, in plain words: one text per sparsity."""
    if data is None or data.judged is None:
        return ["No pruned model was compared in these results, so there is no verdict on what pruning cost."]
    method = data.judged
    return [_verdict_at(data, method, s, about) for s in data.sparsities if data.select(method, s)]


def _verdict_at(data: Comparison, method: str, sparsity: float, about: Mapping[str, Any]) -> str:
    rows = data.select(method, sparsity)
    spread, added = cells(rows, "loss"), mean(cells(rows, "added_loss"))
    size = f"{several(len({t for t, _ in spread}), 'task')} × {several(len({s for _, s in spread}), 'seed')}"
    start = f"At {percent(sparsity, 0)} sparsity, {method} removed {_removed(rows, about)}."
    if added is None:
        cost = f"What that cost is unknown without a dense row; the loss is {with_error(mean(spread))} ({size})."
    elif added.value < 0:
        less = with_error(Mean(-added.value, added.stderr, added.parts))
        cost = f"The loss is {less} nats per token lower than the dense model's ({size})."
    else:
        cost = f"That adds {with_error(added)} nats per token to the dense model's loss ({size})."
    return " ".join(
        [start, cost, *_accuracy_words(rows), *_baseline_words(data, method, sparsity), *_worst_words(rows)]
    )


def _removed(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    realised = [r["realised_sparsity"] for r in rows if r.get("realised_sparsity") is not None]
    if not realised:
        return "an unrecorded share of the prunable parameters"
    share = average(realised)
    prunable = about.get("prunable_params")
    if not prunable:
        return f"{percent(share)} of the prunable parameters"
    return f"{_count(share * prunable)} of {_count(prunable)} prunable parameters ({percent(share)})"


def _count(value: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _accuracy_words(rows: Sequence[Row]) -> list[str]:
    change, acc = cells(rows, "acc_change"), cells(rows, "acc")
    moved = mean(change)
    if moved is None:
        return []
    pruned = average(acc[place] for place in change)
    return [
        f"Accuracy goes from {percent(pruned - moved.value)} to {percent(pruned)} "
        f"({with_error(moved, 1, sign=True, scale=100)} points)."
    ]


def _baseline_words(data: Comparison, method: str, sparsity: float) -> list[str]:
    baseline = best_baseline(data, sparsity)
    if baseline is None:
        return ["No other method was measured at this sparsity."]
    also = " and the paper's own method" if baseline == PAPERS_OWN else ""
    words = _against(data, method, baseline, sparsity, f"the best baseline{also}")
    if baseline != PAPERS_OWN != method and data.select(PAPERS_OWN, sparsity):
        words += _against(data, method, PAPERS_OWN, sparsity, "the paper's own method")
    return [*words, *_variant_words(data, method, sparsity)]


def _against(data: Comparison, method: str, other: str, sparsity: float, what: str) -> list[str]:
    """How a method compares with another one: in loss, in accuracy, and whether that is fair."""
    ours, theirs = data.select(method, sparsity), data.select(other, sparsity)
    gap = paired(main_loss(data, method, sparsity), main_loss(data, other, sparsity))
    if gap is None:
        return [f"{method} and {other} share no task and seed, so they can't be compared."]
    base = mean(main_loss(data, other, sparsity))
    words = f"Against {what}, {other} ({with_error(base, sign=True)}), {_gap_words(method, gap)}."
    accuracy = paired(cells(ours, "acc"), cells(theirs, "acc"))
    if accuracy is not None:
        words += f" In accuracy {method} is {_points_words(accuracy)}."
    return [words, *_unequal_words(ours, theirs, method, other)]


def _variant_words(data: Comparison, method: str, sparsity: float) -> list[str]:
    """Whether another of our methods, at equal sparsity, has a lower mean loss than the one of the verdict."""
    own = main_loss(data, method, sparsity)
    variants = [m for m in data.methods if is_ours(m) and m != method and data.falls_short(m, sparsity) is None]
    gaps = {m: paired(main_loss(data, m, sparsity), own) for m in variants}
    lower = {m: gap for m, gap in gaps.items() if gap and gap.value < 0}
    if not lower:
        return []
    best = min(lower, key=lambda m: lower[m].value)
    words = _gap_words(best, lower[best], than=f" than {method}'s")
    return [f"Of its variants, {words}."]


def _gap_words(method: str, gap: Mean, *, than: str = "") -> str:
    if not math.isfinite(gap.value):
        return "the difference is not finite"
    if gap.value == 0:
        return f"{method} is equal in loss"
    side = "higher" if gap.value > 0 else "lower"
    size = f"{with_error(Mean(abs(gap.value), gap.stderr, gap.parts))} {side}{than}"
    if gap.certain is None:
        return f"{method}'s loss is {size}, from one task and one seed, so nothing says whether that is noise"
    between = interval(gap, sides=("lower", "higher"))
    if not gap.certain:
        return f"no difference is shown: {method}'s loss is {size}, and the {between} has 0 in it{_few(gap)}"
    return f"{method} is {'worse' if gap.value > 0 else 'better'}: its loss is {size} ({between})"


def _points_words(gap: Mean) -> str:
    size = with_error(Mean(abs(gap.value), gap.stderr, gap.parts), 1, scale=100)
    side = "worse" if gap.value < 0 else "better"
    if gap.value == 0:
        return "equal"
    if gap.certain is None:
        return f"{size} points {side}, from one task and one seed, so nothing says whether that is noise"
    between = interval(gap, 1, scale=100, sides=("worse", "better"))
    if not gap.certain:
        return f"{size} points {side}, which shows no difference: the {between} has 0 in it"
    return f"{size} points {side} ({between})"


def _few(gap: Mean) -> str:
    """What makes the interval wide."""
    return f" (it is wide, being of {gap.parts} values)" if gap.parts < 4 else ""


def _unequal_words(ours: Sequence[Row], theirs: Sequence[Row], method: str, baseline: str) -> list[str]:
    sides = [mean(cells(rows, "realised_sparsity")) for rows in (ours, theirs)]
    a, b = (side.value if side else None for side in sides)
    if a is None or b is None or abs(a - b) <= 0.005:
        return []
    return [
        f"Caution: that is no comparison at equal sparsity, {method} really removed {percent(a)} and {baseline} "
        f"{percent(b)}."
    ]


def _worst_words(rows: Sequence[Row]) -> list[str]:
    by_task = {t: mean(cells([r for r in rows if r["task"] == t], "added_loss")) for t in {r["task"] for r in rows}}
    known = sorted(((found.value, task) for task, found in by_task.items() if found), reverse=True)
    if len(known) < 2:
        return []
    return ["Most is lost on " + " and ".join(f"{task} ({number(v, 2, sign=True)})" for v, task in known[:2]) + "."]
