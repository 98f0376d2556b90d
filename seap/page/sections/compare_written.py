"""The section on what models write themselves: right answers, answers in free form, loops, answers without an end."""

import math
from collections.abc import Sequence

from seap.page.comparison import Comparison
from seap.page.numbers import Mean, Row, average, cells, mean, number, percent
from seap.page.parts import Cell, Section, Table

WRITTEN = ("exact match", "pass@1")  # metrics of tasks whose answers are written
COLUMNS = {
    "written": "right, %",
    "said": "right in free form, %",
    "recall": "recall, %",
    "loops": "loop, %",
    "endless": "don't end, %",
}
HIGHER = ("written", "said", "recall")
MEANINGS = {
    "written": "“Right” is the share of answers that match the gold one, or of programs that pass (pass@1).",
    "said": "“Right in free form”: multiple choice asked as open questions, and the gold choice is said first.",
    "recall": "“Recall” is the same of those items alone that the model gets right by choice.",
    "loops": "“Loop” is the share of texts that end in a repeated piece, “don't end” of those that only the limit on "
    "their length ended.",
}


def written_section(data: Comparison) -> Section:
    """A table for each task in which something was written; the dense model's row first."""
    rows = [{**row, "written": row.get("acc") if row.get("acc_metric") in WRITTEN else None} for row in data.rows]
    told = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    tasks = [task for task in data.tasks if any(row["task"] == task and _writes(row) for row in rows)]
    tables = [_table(data, [row for row in rows if row["task"] == task], task, told) for task in tasks]
    text = " ".join(meaning for name, meaning in MEANINGS.items() if name in told)
    errors = "± is the standard error: over seeds, where there are several, else over the test's items."
    return Section(id="written", title="What is written", texts=[f"{text} {errors}"] if tables else [], tables=tables)


def _writes(row: Row) -> bool:
    return any(row.get(name) is not None for name in COLUMNS)


def _table(data: Comparison, rows: Sequence[Row], task: str, told: Sequence[str]) -> Table:
    """Groups: dense, then each sparsity with its methods."""
    dense = [row for row in rows if row["method"] == "dense"]
    groups = [[[Cell("dense"), Cell("0%"), *(_cell(dense, name) for name in told)]]] if dense else []
    for sparsity in data.sparsities:
        own = [r for r in rows if r["control"] is None and math.isclose(r["target_sparsity"], sparsity, abs_tol=1e-6)]
        by_method = {method: [row for row in own if row["method"] == method] for method in data.methods}
        by_method = {method: found for method, found in by_method.items() if any(map(_writes, found))}
        best = {name: _best(data, by_method, sparsity, name) for name in told}
        group = [
            [Cell(method), Cell(_removed(found)), *(_cell(found, name, best=best[name] == method) for name in told)]
            for method, found in by_method.items()
        ]
        if group:
            groups.append(group)
    return Table(task, ["method", "removed", *(COLUMNS[name] for name in told)], groups).without_empty()


def _removed(rows: Sequence[Row]) -> str:
    found = mean(cells(rows, "realised_sparsity"))
    return percent(found.value if found else None)


def _best(data: Comparison, by_method: dict[str, list[Row]], sparsity: float, name: str) -> str | None:
    """The one method that gets most right, of those that removed what they were to; None where several do."""
    equal = {m: rows for m, rows in by_method.items() if data.falls_short(m, sparsity) is None}
    means = {m: found.value for m, rows in equal.items() if (found := mean(cells(rows, name)))}
    if name not in HIGHER or len(means) < 2:
        return None
    first = max(means, key=means.__getitem__)
    return first if list(means.values()).count(means[first]) == 1 else None


def _cell(rows: Sequence[Row], name: str, *, best: bool = False) -> Cell:
    """In percent; the error of one seed is that of its items."""
    found = mean(cells(rows, name))
    if found is None:
        return Cell("–")
    errors = cells(rows, f"{'acc' if name == 'written' else name}_stderr")
    if not math.isfinite(found.stderr) and errors:
        found = Mean(found.value, average(errors.values()), found.parts)
    note = f"± {number(100 * found.stderr, 1)}" if math.isfinite(found.stderr) else ""
    return Cell(number(100 * found.value, 1), note, best=best)
