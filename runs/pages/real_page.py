"""The tables of the quality of public models, in Markdown, made of `results/quality/real_models.json`.

    python runs/pages/real_page.py [RESULT]

Prints two tables: loss and accuracy by model, method and sparsity, and what the models write. Means are over the tasks
that a method has with that model; where others have more, the cell says so, since it can't be compared.
Accuracy is of the tasks where the dense model is above guessing by more than two standard errors.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tables import table

RESULT = Path(__file__).resolve().parents[2] / "results" / "quality" / "real_models.json"
Cell = dict[str, Any]
WRITTEN = {"right": "right", "said": "right in free form", "loops": "loop", "endless": "don't end"}


def own_rows(cells: Iterable[Cell]) -> list[Cell]:
    """Those of networks on their own task: no controls, no other task's network."""
    own = [cell for cell in cells if not cell.get("control")]
    return [cell for cell in own if cell.get("made_for") in (None, cell["task"], "general", cell.get("also_of"))]


def above_chance(cells: Sequence[Cell]) -> set[tuple[str, str]]:
    """Model and task of the dense rows whose accuracy says something."""
    dense = [cell for cell in cells if cell["method"] == "dense" and cell.get("acc") is not None]
    told = [cell for cell in dense if cell["acc"] - (cell.get("chance") or 0.0) > 2 * (cell.get("acc_stderr") or 0.0)]
    return {(cell["model"], cell["task"]) for cell in told}


def mean(cells: Sequence[Cell], name: str) -> tuple[float, float, int] | None:
    """Over tasks, each counted once however many seeds it has; the error that the items' own errors make; how many."""
    known = [cell for cell in cells if cell.get(name) is not None]
    tasks: dict[str, list[Cell]] = {}
    for cell in known:
        tasks.setdefault(cell["task"], []).append(cell)
    if not tasks:
        return None
    values = [sum(one[name] for one in own) / len(own) for own in tasks.values()]
    errors = [sum(one.get(f"{name}_stderr") or 0.0 for one in own) / len(own) for own in tasks.values()]
    return sum(values) / len(values), math.sqrt(sum(e * e for e in errors)) / len(values), len(values)


def shown(cells: Sequence[Cell], name: str, most: int, *, scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """`+0.40 ± 0.04`, with `(3 of 5)` where it is of fewer tasks than others have."""
    found = mean(cells, name)
    if found is None:
        return "–"
    value, error, count = found
    few = f" ({count} of {most})" if count < most else ""
    text = f"{scale * value:{sign}.{digits}f} ± {scale * error:.{digits}f}{few}"
    return text.replace("-", "−")


def places(cells: Sequence[Cell]) -> list[tuple[float, str, str]]:
    """Sparsity, model and method of every row, the dense one first, then by sparsity and by what is lost."""
    lost: dict[tuple[float, str, str], list[float]] = {}
    for cell in cells:
        key = (cell["target_sparsity"], cell["model"], cell["method"])
        lost.setdefault(key, []).append(cell.get("added_loss") or 0.0)
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    order = {key: (models.index(key[1]), key[0], sum(values) / len(values)) for key, values in lost.items()}
    return sorted(lost, key=order.__getitem__)


def rows(cells: Sequence[Cell], columns: Callable[[list[Cell], list[Cell]], list[str]]) -> list[list[str]]:
    """One for every place. columns: the cells of a row, of its own rows and of all networks of that model.

    The dense model's row is of the tasks that some network was tested on.
    """
    made, last = [], ""
    for sparsity, model, method in places(cells):
        beside = [cell for cell in cells if cell["model"] == model and cell["method"] != "dense"]
        tested = {cell["task"] for cell in beside}
        own = [
            cell
            for cell in cells
            if (cell["target_sparsity"], cell["model"], cell["method"]) == (sparsity, model, method)
        ]
        own = [cell for cell in own if cell["task"] in tested]
        removed = mean(own, "realised_sparsity")
        told = columns(own, beside)
        if any(cell != "–" for cell in told):
            made.append([model if model != last else "", f"{removed[0]:.0%}" if removed else "–", f"`{method}`", *told])
            last = model
    return made


def most(cells: Sequence[Cell], name: str) -> int:
    return len({cell["task"] for cell in cells if cell.get(name) is not None})


def quality(cells: Sequence[Cell]) -> str:
    """Loss and accuracy."""
    able = above_chance(cells)

    def columns(own: list[Cell], beside: list[Cell]) -> list[str]:
        told, others = ([c for c in part if (c["model"], c["task"]) in able] for part in (own, beside))
        return [
            shown(own, "added_loss", most(beside, "added_loss"), sign="+"),
            shown(own, "kl", most(beside, "kl")),
            shown(told, "acc", most(others, "acc"), scale=100, digits=1),
            shown(told, "added_acc", most(others, "added_acc"), scale=100, digits=1, sign="+"),
            shown(own, "off_task_added_loss", most(beside, "off_task_added_loss"), sign="+").partition(" ±")[0],
        ]

    heads = ["model", "removed", "method", "added loss", "KL", "accuracy, %", "− dense", "added loss off task"]
    return table(heads, rows(cells, columns))


def writing(cells: Sequence[Cell]) -> str:
    """What the models write themselves."""
    written = [
        {**cell, "right": cell["acc"], "right_stderr": cell.get("acc_stderr")}
        if cell.get("acc_metric") in ("exact match", "pass@1") and cell.get("acc") is not None
        else cell
        for cell in cells
    ]
    names = [name for name in WRITTEN if any(cell.get(name) is not None for cell in written)]

    def columns(own: list[Cell], beside: list[Cell]) -> list[str]:
        return [shown(own, name, most(beside, name), scale=100, digits=1) for name in names]

    return table(["model", "removed", "method", *(f"{WRITTEN[name]}, %" for name in names)], rows(written, columns))


def main() -> int:
    found = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT).read_text())
    cells = own_rows(found["cells"])
    tasks = {model: sorted({c["task"] for c in cells if c["model"] == model}) for model in found["models"]}
    print(f"{quality(cells)}\n\n{writing(cells)}\n")
    print("; ".join(f"{model}: {', '.join(names)}" for model, names in tasks.items() if names) + ".")
    return 0


if __name__ == "__main__":
    sys.exit(main())
