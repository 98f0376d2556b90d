"""Sections of an `analyze` file: a map of the tasks, what each activates, how stable the masks are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seap.page import plots
from seap.page.numbers import Row, average, percent
from seap.page.parts import AXES, Section, styled_line
from seap.page.plots import Plot, Series


def map_section(data: Mapping[str, Any]) -> Section:
    found, texts = [], []
    if points := (data.get("map") or {}).get("points"):
        method, layer = data["map"].get("method", "projection"), data["map"].get("layer")
        rows = [(p["x"], p["y"], p["task"]) for p in points]
        styles = plots.task_styles(list(dict.fromkeys(row[2] for row in rows)))
        title = f"{method} of hidden states, layer {layer}"
        alt = f"{title}: {len(rows)} texts of {len(styles)} tasks, one dot per text."
        draw = plots.scatter(rows, styles)
        columns = ("x", "y", "task")
        found.append(Plot(name="map", title=title, alt=alt, columns=columns, rows=rows, draw=draw, height=4.2))
        texts.append(f"Each dot is one text. Distances in a {method} map have no unit.")
    if values := data.get("silhouette"):
        best = max(range(len(values)), key=values.__getitem__)
        texts.append(
            f"The silhouette says how well the tasks stand apart: 1 fully, 0 not at all. It is highest in layer {best} "
            f"({values[best]:.2f})."
        )
        series = [Series(label="", x=range(len(values)), y=values)]
        alt = f"Silhouette of the tasks by layer: {values[0]:.2f} in the first, {values[-1]:.2f} in the last."
        draw = plots.lines(series, x="layer", y="silhouette", zero=True)
        table: list[tuple[Any, ...]] = list(enumerate(values))
        title, names = "Silhouette by layer", ("layer", "silhouette")
        found.append(Plot(name="silhouette", title=title, alt=alt, columns=names, rows=table, draw=draw))
    return Section(id="map", title="How tasks look from inside the model", texts=texts, plots=found)


def activation_section(data: Mapping[str, Any]) -> Section:
    found = data.get("activation") or []
    maps = [one for one in (found if isinstance(found, list) else [found]) if len(one["tasks"]) > 1]
    text = (
        "Activation in bins of units, layer by layer, against the mean of all tasks: orange where this task's is "
        "larger, blue where it is smaller; full colour from twice or half on."
    )
    charts = [
        _activation(one["tasks"], one["values"], i, one["axis"]) for one in maps for i in range(len(one["tasks"]))
    ]
    return Section(id="activation", title="What each task activates", texts=[text], plots=charts, small=True)


def _activation(tasks: Sequence[str], values: Sequence[Sequence[Sequence[float]]], place: int, axis: str) -> Plot:
    units, ratios = AXES.get(axis, axis), []
    for i, layer in enumerate(values[place]):
        means = [average(task[i][j] for task in values) for j in range(len(layer))]
        ratios.append([math.log2(v / m) if v > 0 and m > 0 else 0.0 for v, m in zip(layer, means, strict=True)])
    rows = [(i, j, v) for i, layer in enumerate(values[place]) for j, v in enumerate(layer)]
    return Plot(
        name=f"activation_{axis}_{tasks[place]}",
        title=f"{tasks[place]}, {units}",
        alt=f"Activation of {units} on {tasks[place]} by layer and bin, against the mean of all tasks.",
        columns=("layer", "bin", "activation"),
        rows=rows,
        draw=plots.relief(ratios, x=f"bin of {units}", y="layer"),
        width=3.3,
        height=2.5,
    )


def stability_section(data: Mapping[str, Any]) -> Section:
    found = [_depth_overlap(data.get("overlap") or [])]
    split, enough = data.get("stability") or [], data.get("enough") or []
    for axis, sparsity in dict.fromkeys((r["axis"], r["sparsity"]) for r in split):
        rows = [r for r in split if (r["axis"], r["sparsity"]) == (axis, sparsity)]
        title = f"Split halves agree: {AXES.get(axis, axis)}, at {percent(sparsity, 0)} sparsity"
        draw = _by_texts if len({r["task"] for r in rows}) < len(rows) else _halves
        found.append(draw(rows, "jaccard", f"stability_{axis}_{sparsity:g}", title, "overlap of the two masks"))
    for sparsity in dict.fromkeys(r.get("sparsity") for r in enough):
        rows = [r for r in enough if r.get("sparsity") == sparsity]
        at = "" if sparsity is None else f", at {percent(sparsity, 0)} sparsity"
        for key, what, label in (
            ("jaccard", "mask", "overlap with all texts"),
            ("loss", "loss", "loss, nats per token"),
        ):
            name = f"enough_{key}" + ("" if sparsity is None else f"_{sparsity:g}")
            found.append(_by_texts(rows, key, name, f"How many texts: the {what}{at}", label))
    text = (
        "A mask that depends on the task should come out the same from either half of its texts, and stop changing "
        "with more of them. Overlap is the Jaccard index of what is kept; grey is what chance would give."
    )
    title = "Are the masks stable, and how many texts are enough?"
    return Section(id="stability", title=title, texts=[text], plots=[p for p in found if p])


def _halves(records: Sequence[Row], key: str, name: str, title: str, label: str) -> Plot:
    """One number per task."""
    rows = [(r["task"], r["num_texts"], r[key], r.get("expected")) for r in records]
    values, chance = [row[2] for row in rows], [row[3] for row in rows]
    words = "; ".join(f"{task} {value:.2f}" for task, _, value, _ in rows)
    draw = plots.dots(
        [f"{task} ({num_texts})" for task, num_texts, _, _ in rows],
        values,
        [0.0] * len(rows),
        x=f"{label} (texts in each half)",
        colours=[plots.BLUE] * len(rows),
        chance=chance,
    )
    alt, columns = f"{title}, {label}: {words}.", ("task", "num_texts", key, "expected")
    return Plot(name=name, title=title, alt=alt, columns=columns, rows=rows, draw=draw, height=1.1 + 0.42 * len(rows))


def _depth_overlap(records: Sequence[Row]) -> Plot | None:
    if not records:
        return None
    colours = (plots.BLUE, plots.RED, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.BROWN)
    series, rows = [], []
    for i, one in enumerate(records):
        label = f"{AXES.get(one['axis'], one['axis'])} {percent(one['sparsity'], 0)}"
        style = (colours[i % len(colours)], plots.MARKERS[i % len(plots.MARKERS)])
        layers = range(len(one["per_layer"]))
        chance = one.get("expected_per_layer") or [None] * len(layers)
        series.append(styled_line(label, layers, one["per_layer"], style))
        if None not in chance:
            series.append(styled_line(f"{label}, chance", layers, chance, (plots.GREY, style[1])))
        rows += [(one["axis"], one["sparsity"], layer, one["per_layer"][layer], chance[layer]) for layer in layers]
    words = "; ".join(f"{s.label} from {min(s.y):.2f} to {max(s.y):.2f}" for s in series)
    return Plot(
        name="overlap_by_layer",
        title="Overlap between tasks, layer by layer",
        alt=f"Overlap of the tasks' masks by layer: {words}.",
        columns=("axis", "sparsity", "layer", "jaccard", "expected"),
        rows=rows,
        draw=plots.lines(series, x="layer", y="overlap between tasks"),
        height=3.8,
    )


def _by_texts(records: Sequence[Row], key: str, name: str, title: str, label: str) -> Plot | None:
    rows = [(r["task"], r["num_texts"], r[key]) for r in records if r.get(key) is not None]
    if not rows:
        return None
    series = []
    for task, style in plots.task_styles(list(dict.fromkeys(row[0] for row in rows))).items():
        own = sorted((n, value) for t, n, value in rows if t == task)
        series.append(styled_line(task, [n for n, _ in own], [v for _, v in own], style))
    ticks = sorted({row[1] for row in rows})
    most = [row[2] for row in rows if row[1] == ticks[-1]]
    ticks = [n for i, n in enumerate(ticks) if i == len(ticks) - 1 or n * 1.3 < ticks[i + 1]]  # none over another
    alt = f"{title}, {label}: with {ticks[-1]} texts from {min(most):.2f} to {max(most):.2f}."
    draw = plots.lines(series, x="number of texts", y=label, ticks=ticks, log=len(ticks) > 1)
    columns = ("task", "num_texts", key)
    return Plot(name=name, title=title, alt=alt, columns=columns, rows=rows, draw=draw, height=3.6)
