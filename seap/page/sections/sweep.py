"""The section of a `sweep` file: what every sparsity costs in loss and accuracy, and gains in size and speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from seap.page import plots
from seap.page.numbers import Row, number, percent
from seap.page.parts import Cell, Section, Table, styled_line
from seap.page.plots import BLUE, GREEN, RED, Plot, Series

PHASES = {"prefill": (BLUE, "o"), "decode": (RED, "s")}
REMOVED = "prunable parameters removed, %"


def frontier_section(data: Mapping[str, Any]) -> Section:
    rows = sorted(data["rows"], key=lambda row: (row["task"], row["realised_sparsity"]))
    by_task = {task: [r for r in rows if r["task"] == task] for task in dict.fromkeys(r["task"] for r in rows)}
    found = [_loss(by_task), _accuracy(by_task), _agreement(by_task), _speed(rows), _size(rows)] if rows else []
    texts = [
        "One calibration, pruned to every sparsity. Errors of added loss are paired with the dense model text by text; "
        "'at most' is a one-sided 95% bound for that sparsity alone. To choose a sparsity by such a bound, use "
        "seap prune --max-loss, which pays for having looked at several.",
        "Speed is of really sliced models, timed in turn with the dense one; bars are half the distance between the "
        "quartiles of the repeats.",
    ]
    columns = ["removed", "loss", "added loss", "in %", "at most", "ppl", "accuracy", "same first token", "MB"]
    columns += list(PHASES)
    tables = [Table(task, columns, [[_cells(row) for row in own]]) for task, own in by_task.items()]
    plots_ = [plot for plot in found if plot is not None]
    return Section(id="frontier", title="What every sparsity costs and gains", texts=texts, tables=tables, plots=plots_)


def frontier_words(data: Mapping[str, Any]) -> str:
    """In one sentence per file: the largest sparsity that was swept, and what it did."""
    if not data["rows"]:
        return "Nothing was swept in these results."
    row = max(data["rows"], key=lambda r: r["realised_sparsity"])
    words = f"At {percent(row['realised_sparsity'], 0)} sparsity, the most that was swept, the loss on {row['task']} "
    words += f"changes by {_added(row)} nats per token"
    if row.get("relative_loss") is not None:
        words += f" ({_signed(row['relative_loss'])})"
    speed = row.get("speed") or {}
    ratios = [f"{phase} ×{speed[phase]['ratio']:.2f}" for phase in PHASES if phase in speed]
    return words + (f"; speed, measured: {', '.join(ratios)}." if ratios else ".")


def _cells(row: Row) -> list[Cell]:
    texts = [percent(row["realised_sparsity"]), number(row.get("loss")), _added(row)]
    texts += [_signed(row.get("relative_loss")), _signed(row.get("relative_loss_upper")), number(row["ppl"], 2)]
    acc, error = row.get("acc"), row.get("acc_stderr")
    texts.append("–" if acc is None else f"{percent(acc)} ± {number(100 * (error or 0), 1)}")
    differing = row.get("disagreement")
    texts += [percent(None if differing is None else 1 - differing), number(row["bytes"] / 1e6, 1)]
    for phase in PHASES:
        found = (row.get("speed") or {}).get(phase)
        texts.append(f"×{found['ratio']:.2f}" if found else "–")
    return [Cell(text) for text in texts]


def _added(row: Row) -> str:
    error = row.get("added_loss_stderr")
    return number(row["added_loss"], sign=True) + (f" ± {number(error)}" if error else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else number(100 * value, 1, sign=True) + "%"


def _lines(
    name: str, title: str, y: str, by_task: Mapping[str, Sequence[Row]], values: Sequence[str], **style: Any
) -> Plot | None:
    """A line per task: the value named first, in percent, with the error named second."""
    value, error = values
    styles, series, numbers = plots.task_styles(list(by_task)), [], []
    for task, rows in by_task.items():
        own = [r for r in rows if r.get(value) is not None]
        if own:
            x, heights = _removed(own), [100 * r[value] for r in own]
            series.append(styled_line(task, x, heights, styles[task], [r.get(error) or 0.0 for r in own], scale=100))
            numbers += [(task, r["realised_sparsity"], r[value], r.get(error)) for r in own]
    if not series:
        return None
    ends = "; ".join(f"{s.label}: {number(s.y[-1], 1)}% at {number(s.x[-1], 0)}%" for s in series)
    return Plot(
        name=name,
        title=title,
        alt=f"{title} against {REMOVED}. {ends}.",
        columns=("task", "realised_sparsity", value, error),
        rows=numbers,
        draw=plots.lines(series, x=REMOVED, y=y, **style),
    )


def _removed(rows: Sequence[Row]) -> list[float]:
    return [100 * row["realised_sparsity"] for row in rows]


def _loss(by_task: Mapping[str, Sequence[Row]]) -> Plot | None:
    values = ("relative_loss", "relative_loss_stderr")
    return _lines("frontier_loss", "Growth of the loss", "added loss, %", by_task, values, zero=True)


def _accuracy(by_task: Mapping[str, Sequence[Row]]) -> Plot | None:
    return _lines("frontier_accuracy", "Accuracy", "right answers, %", by_task, ("acc", "acc_stderr"), zero=True)


def _agreement(by_task: Mapping[str, Sequence[Row]]) -> Plot | None:
    title, values = "First token unlike the dense model's", ("disagreement", "disagreement_stderr")
    return _lines("frontier_disagreement", title, "tokens, %", by_task, values, zero=True)


def _speed(rows: Sequence[Row]) -> Plot | None:
    timed = list({row["realised_sparsity"]: row for row in rows if row.get("speed")}.values())
    if not timed:
        return None
    series, numbers = [], []
    for phase, (colour, marker) in PHASES.items():
        found = [(100 * row["realised_sparsity"], row["speed"][phase]) for row in timed if phase in row["speed"]]
        x, ratios = [0.0, *[a for a, _ in found]], [1.0, *[f["ratio"] for _, f in found]]
        spread = [0.0, *[(f.get("ratio_high", f["ratio"]) - f.get("ratio_low", f["ratio"])) / 2 for _, f in found]]
        series.append(Series(label=phase, x=x, y=ratios, error=spread, colour=colour, marker=marker))
        kept = ("dense_tokens_per_s", "tokens_per_s", "ratio", "ratio_low", "ratio_high")
        numbers += [(phase, a / 100, *[f.get(name) for name in kept]) for a, f in found]
    ends = "; ".join(f"{s.label}: ×{s.y[-1]:.2f} at {number(s.x[-1], 0)}%" for s in series)
    return Plot(
        name="frontier_speed",
        title="Speed, measured",
        alt=f"Tokens per second over the dense model's against {REMOVED}. {ends}.",
        columns=(
            "phase",
            "realised_sparsity",
            "dense_tokens_per_s",
            "tokens_per_s",
            "ratio",
            "ratio_low",
            "ratio_high",
        ),
        rows=numbers,
        draw=plots.lines(series, x=REMOVED, y="tokens/s, pruned ÷ dense"),
    )


def _size(rows: Sequence[Row]) -> Plot:
    sizes = {row["realised_sparsity"]: row["bytes"] / 1e6 for row in rows}
    x, y = [100 * place for place in sizes], list(sizes.values())
    return Plot(
        name="frontier_size",
        title="Size of all weights",
        alt=f"Megabytes of weights against {REMOVED}: {number(y[0], 1)} to {number(y[-1], 1)}.",
        columns=("realised_sparsity", "megabytes"),
        rows=list(sizes.items()),
        draw=plots.lines([Series(label="size", x=x, y=y, colour=GREEN)], x=REMOVED, y="MB", zero=True),
    )
