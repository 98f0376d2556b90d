"""Added loss (loss − dense loss) of every method in a comparison: the mean over tasks and seeds, and ratios.

    python runs/quality/added_loss.py results/quality/quality_natural.json

± is the standard deviation, over the tasks, of the mean over seeds.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def added(rows: list[dict[str, Any]]) -> dict[tuple[float, str], dict[str, list[float]]]:
    """(sparsity, method) → task → one figure per seed; rows of controls are left out."""
    dense = {row["task"]: row["loss"] for row in rows if row["method"] == "dense"}
    found: dict[tuple[float, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["method"] != "dense" and row.get("control") is None:
            found[row["target_sparsity"], row["method"]][row["task"]].append(row["loss"] - dense[row["task"]])
    return found


def main(path: Path) -> None:
    found = added(json.loads(path.read_text())["rows"])
    means = {key: statistics.fmean(statistics.fmean(v) for v in tasks.values()) for key, tasks in found.items()}
    print(f"{'sparsity':>8}  {'method':<16}{'added':>8}  {'± tasks':>8}  {'÷ seap-paper':>12}")
    for (sparsity, method), value in sorted(means.items()):
        by_task = [statistics.fmean(values) for values in found[sparsity, method].values()]
        spread = statistics.stdev(by_task) if len(by_task) > 1 else 0.0
        ratio = value / means.get((sparsity, "seap-paper"), float("nan"))
        print(f"{sparsity:>8}  {method:<16}{value:>8.4f}  {spread:>8.4f}  {ratio:>12.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
