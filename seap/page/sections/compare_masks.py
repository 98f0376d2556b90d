"""Sections on whose masks they are: overlap between tasks, a mask on another task, controls."""

import math
from collections.abc import Mapping, Sequence

from seap.page import plots
from seap.page.comparison import Comparison
from seap.page.numbers import Cells, Mean, Row, cells, mean, number, paired, percent, with_error
from seap.page.parts import AXES, Section
from seap.page.plots import Plot

CONTROLS = {
    None: "own task",
    "general-text": "general text",
    "pooled": "all tasks pooled",
    "other-task": "another task",
    "no-answers": "own task, no answers",
    "published-flap": "FLAP's 1024 × 128 tokens",
}


def overlap_section(data: Comparison) -> Section:
    seed = min((o.get("seed", 0) for o in data.overlap), default=0)
    found = [_overlap(o) for o in data.overlap if o.get("seed", 0) == seed and len(o["tasks"]) > 1]
    text = (
        "Share of kept units that two tasks' masks have in common (Jaccard index; 1 means the same mask). Masks picked "
        "at random would reach the share named in the title; the colours run from that to 1."
    )
    return Section(id="overlap", title="How much the tasks' masks overlap", texts=[text], plots=found)


def _overlap(one: Row) -> Plot:
    tasks, values = one["tasks"], one["jaccard"]
    pairs = [(a, b, values[i][j]) for i, a in enumerate(tasks) for j, b in enumerate(tasks)]
    off = [value for a, b, value in pairs if a != b]
    shown = [[None if i == j else values[i][j] for j in range(len(tasks))] for i in range(len(tasks))]
    chance = one.get("expected")
    title = f"{one['method']}, {AXES.get(one['axis'], one['axis'])}, at {percent(one['sparsity'], 0)} sparsity"
    title += "" if chance is None else f" (by chance {chance:.2f})"
    size = 1.6 + 0.42 * len(tasks)
    return Plot(
        name=f"overlap_{one['method']}_{one['axis']}_{one['sparsity']:g}",
        title=title,
        alt=f"Overlap of masks between tasks, {title}: from {min(off):.2f} to {max(off):.2f}.",
        columns=("task", "other_task", "jaccard"),
        rows=pairs,
        draw=plots.matrix(tasks, tasks, shown, scale=(min(chance or 0.0, *off), 1.0)),
        width=max(4.7, size + 0.4),
        height=max(2.6, size - 0.3),
    )


def cross_section(data: Comparison) -> Section:
    charts, texts = [], ["Added loss (nats per token) when a mask made for one task is used on another."]
    for method, sparsity in _with_control(data, ["other-task"]):
        others, own = data.select(method, sparsity, "other-task"), data.select(method, sparsity)
        charts.append(_cross(data, method, sparsity, [*own, *others]))
        gap = paired(*(cells(rows, "added_loss") for rows in (others, own)))
        if gap:
            texts.append(
                f"{method} at {percent(sparsity, 0)}: another task's mask costs {_more_or_less(gap)} than one's own."
            )
    return Section(id="cross", title="A mask on another task", texts=texts, plots=[c for c in charts if c])


def _cross(data: Comparison, method: str, sparsity: float, rows: Sequence[Row]) -> Plot | None:
    names = [t for t in data.tasks if any(r["task"] == t or r["made_for"] == t for r in rows)]
    values = []
    for made in names:
        line = [[r for r in rows if (r["made_for"] or r["task"]) == made and r["task"] == task] for task in names]
        values.append([found.value if (found := mean(cells(part, "added_loss"))) else None for part in line])
    table = [(a, b, values[i][j]) for i, a in enumerate(names) for j, b in enumerate(names)]
    known = [v for line in values for v in line if v is not None]
    if not known:
        return None
    title = f"{method}, at {percent(sparsity, 0)} sparsity"
    size = 1.6 + 0.42 * len(names)
    return Plot(
        name=f"cross_{method}_{sparsity:g}",
        title=title,
        alt=f"Added loss by the mask's task and the task it is used on, {title}: {min(known):.2f} to {max(known):.2f}.",
        columns=("made_for", "evaluated_on", "added_loss"),
        rows=table,
        draw=plots.matrix(names, names, values, x="evaluated on", y="mask made for"),
        width=max(4.7, size + 0.6),
        height=max(2.6, size - 0.1),
    )


def _with_control(data: Comparison, controls: Sequence[str]) -> list[tuple[str, float]]:
    """Methods and sparsities that have rows of one of these controls, and of none."""
    places = [(m, s) for m in data.methods for s in data.sparsities if data.select(m, s)]
    return [(m, s) for m, s in places if any(data.select(m, s, c) for c in controls)]


def _more_or_less(gap: Mean) -> str:
    words = f"{with_error(Mean(abs(gap.value), gap.stderr, gap.parts))} {'more' if gap.value > 0 else 'less'}"
    return words + {True: "", False: " (within noise)", None: " (error unknown)"}[gap.certain]


def control_section(data: Comparison) -> Section:
    names = [*filter(None, CONTROLS), *dict.fromkeys(r["control"] for r in data.rows if r["control"] not in CONTROLS)]
    texts = ["The same method and sparsity with a mask made from other text; the dotted line is its own task's text."]
    charts = []
    for method, sparsity in _with_control(data, names):
        own = cells(data.select(method, sparsity), "added_loss")
        found = {c: cells(data.select(method, sparsity, c), "added_loss") for c in names}
        parts = []
        for control, values in found.items():
            if gap := paired(values, own):
                parts.append(f"{CONTROLS.get(control, control)} {_more_or_less(gap)}")
        if parts:
            texts.append(
                f"{method} at {percent(sparsity, 0)}, added loss against its own task's text: {', '.join(parts)}."
            )
            charts.append(_controls(method, sparsity, {None: own} | found))
    return Section(id="controls", title="Is it the task's text? Controls", texts=texts, plots=charts)


def _controls(method: str, sparsity: float, found: Mapping[str | None, Cells]) -> Plot:
    """Only tasks and seeds that all shown controls have, so that the dots can be compared."""
    shown = {c: values for c, values in found.items() if values}
    common = set.intersection(*(set(values) for values in shown.values())) or set(found[None])
    means = {c: mean({k: v for k, v in values.items() if k in common}) for c, values in shown.items()}
    rows = [(str(CONTROLS.get(c, c)), m.value, m.stderr) for c, m in means.items() if m]
    errors = [0.0 if math.isnan(row[2]) else row[2] for row in rows]
    title = f"{method}, at {percent(sparsity, 0)} sparsity"
    words = "; ".join(f"{label} {number(value)}" for label, value, _ in rows)
    colours = [plots.BLUE if row[0] == CONTROLS[None] else plots.GREY for row in rows]
    labels, values = [row[0] for row in rows], [row[1] for row in rows]
    return Plot(
        name=f"controls_{method}_{sparsity:g}",
        title=title,
        alt=f"Added loss by the text the mask was made from, {title}: {words}.",
        columns=("made_from", "added_loss", "stderr"),
        rows=rows,
        draw=plots.dots(labels, values, errors, x="added loss, nats per token", colours=colours, line=values[0]),
        height=1.1 + 0.42 * len(rows),
    )
