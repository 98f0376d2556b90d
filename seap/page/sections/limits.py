"""The section on what the numbers can't say."""

import math
from collections.abc import Sequence

from seap.page.comparison import Comparison, is_ours
from seap.page.numbers import Row, cells, percent, several
from seap.page.parts import Section


def limits_section(data: Comparison | None, bench: bool, missing: Sequence[Section]) -> Section:
    points = _compare_limits(data) if data else []
    if not bench:
        points.append("Speed was not measured: nothing here says that the pruned model runs faster.")
    if missing:
        points.append("Left out for want of data: " + "; ".join(s.title.rstrip("?") for s in missing) + ".")
    if data and data.judged and len(data.methods) > 1 and not all(map(is_ours, data.methods)):
        points.append("The best baseline is picked on the test text that it is compared on, which favours it a little.")
    return Section(id="limits", title="Limits", points=points)


def _compare_limits(data: Comparison) -> list[str]:
    main = [r for m in data.methods for r in data.select(m)]
    found = []
    if not data.select("dense"):
        found.append("There is no row for the dense model, so added loss is unknown.")
    if len(data.seeds) < 3:
        found.append(
            f"Only {several(len(data.seeds), 'seed')}: how much chance in the choice of text matters is hardly known."
        )
    if len(data.tasks) < 3:
        found.append(f"Only {several(len(data.tasks), 'task')}: no statement about other tasks follows.")
    return found + _accuracy_limits(main) + _fairness_limits(data, main)


def _accuracy_limits(main: Sequence[Row]) -> list[str]:
    scored = [r for r in main if r["acc"] is not None]
    if not scored:
        return ["Loss only: no answers were scored, and a small loss can still hide wrong answers."]
    found = []
    small = min(scored, key=lambda r: r.get("n") or math.inf)
    if (small.get("n") or math.inf) < 500:
        widest = max(r.get("acc_stderr") or 0.0 for r in scored)
        error = f" (standard error up to {percent(widest)})" if widest else ""
        found.append(f"Small tests: accuracy on {small['task']} rests on {small['n']} items{error}.")
    chosen = sorted(
        {r["task"] for r in scored if r.get("acc_metric") in ("multiple choice", "continuation among four")}
    )
    if chosen:
        found.append(
            "Choosing among given answers overstates what pruned models can still do; so measured here: "
            f"{', '.join(chosen)}."
        )
    if not any(r.get("acc_metric") in ("exact match", "pass@1") or r.get("said") is not None for r in scored):
        found.append("No task in which the model has to write the answer itself.")
    unscored = sorted({r["task"] for r in main} - {r["task"] for r in scored})
    return [*found, f"Loss only, no answers scored: {', '.join(unscored)}."] if unscored else found


def _fairness_limits(data: Comparison, main: Sequence[Row]) -> list[str]:
    found = []
    off = sorted({r["method"] for r in main if abs(r.get("realised_sparsity", math.nan) - r["target_sparsity"]) > 0.01})
    if off:
        found.append(f"Realised sparsity is more than one point off its target in: {', '.join(off)}.")
    tokens = {m: {r.get("calibration_tokens") for r in data.select(m)} - {None} for m in data.methods}
    counts = [count for of_method in tokens.values() for count in of_method if count is not None]
    if counts and max(counts) > 1.01 * min(counts):
        found.append("The methods did not all see the same number of calibration tokens.")
    full = len(data.tasks) * len(data.seeds)
    places = [(m, s) for m in data.methods for s in data.sparsities]
    holes = [f"{m} at {percent(s, 0)}" for m, s in places if 0 < len(cells(data.select(m, s), "loss")) < full]
    if holes:
        found.append(f"Not measured on all tasks and seeds, so these means are over fewer: {', '.join(holes)}.")
    if not any(r["control"] for r in data.rows):
        found.append("No controls (general text, pooled, another task): the masks may owe nothing to the task.")
    return found
