"""Sections on what pruning cost and what it left: results, task by task, cost against sparsity, layer widths."""

import math
from collections.abc import Sequence
from typing import Any

from seap.page import plots
from seap.page.comparison import Comparison
from seap.page.numbers import Mean, Row, average, cells, mean, number, percent, several
from seap.page.parts import AXES, Cell, Section, Table, styled_line
from seap.page.plots import Plot


def main_section(data: Comparison) -> Section:
    columns = [
        "method",
        "removed",
        "added loss",
        "perplexity",
        "accuracy, %",
        "accuracy − dense",
        "agrees with dense, %",
    ]
    dense = data.select("dense")
    ppl, acc, *_ = _measures(dense)
    groups = [[[Cell("dense"), Cell("0%"), Cell("0"), ppl, acc, Cell("0"), Cell("–")]]] if dense else []
    groups += [_main_rows(data, sparsity) for sparsity in data.sparsities]
    over = f"{several(len(data.tasks), 'task')} and {several(len(data.seeds), 'seed')}"
    text = (
        f"Each figure is the mean over {over} ± its standard error{_of_what(data)}. Added loss is against the dense "
        "model on the same text, in nats per token: lower is better; the lowest at each sparsity is bold, of the "
        "methods that reached it on all tasks. “Removed” is the share of all prunable parameters that is gone."
    )
    files = {"results.csv": _records([{k: v for k, v in r.items() if k != "layers"} for r in data.rows])}
    table = Table(f"Means over {over}", columns, groups).without_empty(leaving_out=len(dense[:1]))
    return Section(id="results", title="Results", texts=[text], tables=[table], files=files)


def _of_what(data: Comparison) -> str:
    """What makes the error of a mean."""
    if len(data.tasks) > 1:
        return " (each task counted once, so most of the error is how much the tasks differ)"
    return "" if len(data.seeds) > 1 else " where there is one: with one task and one seed there is none"


def _main_rows(data: Comparison, sparsity: float) -> list[list[Cell]]:
    best_of_all = data.lowest(sparsity)
    rows = []
    for method in [m for m in data.methods if data.select(m, sparsity)]:
        chosen = data.select(method, sparsity)
        removed = mean(cells(chosen, "realised_sparsity"))
        if removed and removed.stderr < 5e-5:
            removed = Mean(removed.value, math.nan, removed.parts)  # would read ± 0.00
        added = _cell(mean(cells(chosen, "added_loss")), sign=True, best=method == best_of_all)
        own, others = data.tested_on(method, sparsity)
        where = f"{own} of {others} tasks" if own < others else ""
        rows.append([Cell(method, where), _cell(removed, 2, scale=100, unit="%"), added, *_measures(chosen)])
    return rows


def _cell(
    found: Mean | None, digits: int = 3, *, scale: float = 1, sign: bool = False, best: bool = False, unit: str = ""
) -> Cell:
    """The mean with its error as a note."""
    if found is None:
        return Cell("–")
    note = f"± {number(found.stderr * scale, digits)}" if math.isfinite(found.stderr) else ""
    return Cell(number(found.value * scale, digits, sign=sign) + unit, note, best=best)


def _measures(rows: Sequence[Row]) -> list[Cell]:
    return [
        _cell(mean(cells(rows, "ppl")), 2),
        _cell(mean(cells(rows, "acc")), 1, scale=100),
        _cell(mean(cells(rows, "acc_change")), 1, scale=100, sign=True),
        _cell(mean(cells(rows, "agreement")), 1, scale=100),
    ]


def _records(rows: Sequence[Row]) -> list[Sequence[Any]]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [columns, *([row.get(c) for c in columns] for row in rows)]


def task_section(data: Comparison) -> Section:
    tables = []
    for sparsity in data.sparsities:
        for key, what in (("added_loss", "Added loss, nats per token"), ("acc", "Accuracy, %")):
            methods = [m for m in data.methods if cells(data.select(m, sparsity), key)]
            if methods:
                rows = [_task_row(data, task, methods, sparsity, key) for task in data.tasks]
                columns = ["task", *(["dense"] if key == "acc" else []), *(_named(data, m, sparsity) for m in methods)]
                tables.append(Table(f"{what}, at {percent(sparsity, 0)} sparsity", columns, [rows]))
    text = (
        f"Mean over {several(len(data.seeds), 'seed')}; the best of each task is bold, of the methods that reached the "
        "sparsity. ± is the standard error: of added loss over seeds, where there are several, of accuracy over the "
        "test's items."
    )
    return Section(id="tasks", title="Task by task", texts=[text], tables=tables)


def _named(data: Comparison, method: str, sparsity: float) -> str:
    removed = data.off_target(method, sparsity)
    return method if removed is None else f"{method} ({percent(removed)})"


def _task_row(data: Comparison, task: str, methods: Sequence[str], sparsity: float, key: str) -> list[Cell]:
    chosen = {m: [r for r in data.select(m, sparsity) if r["task"] == task] for m in methods}
    found = {m: mean(cells(rows, key)) for m, rows in chosen.items()}
    short = {m for m in methods if data.falls_short(m, sparsity) is not None}
    values = [f.value for m, f in found.items() if f and m not in short]
    best = (max if key == "acc" else min)(values, default=math.nan) if len(values) > 1 else math.nan
    row = [Cell(task)]
    if key == "acc":
        dense = mean(cells([r for r in data.select("dense") if r["task"] == task], key))
        row.append(Cell(number(dense.value * 100, 1) if dense else "–"))
    for method, one in found.items():
        wins = one is not None and one.value == best and method not in short
        if one and key == "acc" and (errors := cells(chosen[method], "acc_stderr")):
            one = Mean(one.value, average(errors.values()), one.parts)
        row.append(_cell(one, 1, scale=100, best=wins) if key == "acc" else _cell(one, sign=True, best=wins))
    return row


def curve_section(data: Comparison) -> Section:
    found = [_curve(data, "added_loss", "Added loss against sparsity", "added loss, nats per token", 1)]
    found.append(_curve(data, "acc", "Accuracy against sparsity", "accuracy, %", 100))
    text = "Means over tasks and seeds, at the sparsity that was really reached. Bars are standard errors."
    if any(data.in_part(method, sparsity) for method in data.methods for sparsity in data.sparsities):
        text += " What wasn't tested on every task isn't drawn."
    return Section(id="curves", title="Cost against sparsity", texts=[text], plots=[p for p in found if p])


def _curve(data: Comparison, key: str, title: str, label: str, scale: float) -> Plot | None:
    start = mean(cells(data.select("dense"), key))
    styles, series, rows, words = plots.method_styles(data.methods), [], [], []
    for method in data.methods:
        points = [(0.0, start.value, 0.0)] if start else []
        for sparsity in data.sparsities:
            if data.in_part(method, sparsity):
                continue
            chosen = data.select(method, sparsity)
            found, removed = mean(cells(chosen, key)), mean(cells(chosen, "realised_sparsity"))
            if found:
                error = found.stderr if math.isfinite(found.stderr) else 0.0
                points.append((removed.value if removed else sparsity, found.value, error))
                rows.append((method, sparsity, points[-1][0], found.value, found.stderr))
                words.append(f"{method} at {percent(sparsity, 0)}: {number(found.value * scale, 2)}")
        if any(row[0] == method for row in rows):
            x, y, error_bars = zip(*points, strict=True)
            series.append(
                styled_line(method, [100 * v for v in x], [scale * v for v in y], styles[method], error_bars, scale)
            )
    if not rows:
        return None
    name = "sparsity_" + key
    columns = ("method", "target_sparsity", "realised_sparsity", key, "stderr")
    draw = plots.lines(series, x="parameters removed, % of prunable", y=label)
    return Plot(
        name=name, title=title, alt=f"{title}, {label}. {'; '.join(words)}.", columns=columns, rows=rows, draw=draw
    )


def width_section(data: Comparison) -> Section:
    dense = next((r["layers"] for r in data.select("dense") if r.get("layers")), None)
    wholes = {axis: dense if dense and all(layer.get(axis, 0) > 0 for layer in dense) else None for axis in AXES}
    found = [_widths(data, sparsity, axis, wholes[axis]) for sparsity in data.sparsities for axis in AXES]
    text = f"What each layer keeps, first layer left; mean over the tasks' masks, seed {data.seeds[0]}."
    return Section(id="widths", title="Layer widths", texts=[text], plots=[p for p in found if p])


def _widths(data: Comparison, sparsity: float, axis: str, dense: list[dict[str, int]] | None) -> Plot | None:
    styles, series, rows, words = plots.method_styles(data.methods), [], [], []
    for method in data.methods:
        chosen = [r["layers"] for r in data.select(method, sparsity) if r.get("layers") and r["seed"] == data.seeds[0]]
        if not chosen or not all(axis in layer for layers in chosen for layer in layers):
            continue
        kept = [average(layers[i][axis] for layers in chosen) for i in range(len(chosen[0]))]
        shares = [100 * k / layer[axis] for k, layer in zip(kept, dense, strict=True)] if dense else kept
        series.append(styled_line(method, list(range(len(kept))), shares, styles[method]))
        rows += [(method, i, kept[i], shares[i] / 100 if dense else None) for i in range(len(kept))]
        words.append(f"{method} from {min(shares):.0f} to {max(shares):.0f}")
    if not rows:
        return None
    title, unit = f"{AXES[axis]} kept, at {percent(sparsity, 0)} sparsity", "kept, %" if dense else "units kept"
    return Plot(
        name=f"widths_{axis}_{sparsity:g}",
        title=title,
        alt=f"{title}, {unit}, by layer: {'; '.join(words)}.",
        columns=("method", "layer", "units_kept", "share_kept"),
        rows=rows,
        draw=plots.lines(series, x="layer", y=unit, zero=True),
    )
