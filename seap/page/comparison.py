"""The rows of the `compare` files, each set against the dense model on the same task.

Added loss is a row's loss minus the dense model's on the same task (nats per token).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seap.page.numbers import Cells, Row, average, cells, mean
from seap.page.sources import Source

PAPERS_OWN = "seap-paper"  # the method as it was published, which is what is to be beaten
PUBLISHED = (PAPERS_OWN, "seap-gen", "seap-reference")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows of the `compare` files, each with `added_loss` and `acc_change` against dense (None without dense)."""

    rows: list[Row]
    overlap: list[Row]
    methods: list[str]  # the judged one, its variants, then the others from the lowest mean loss up
    judged: str | None
    tasks: list[str]
    seeds: list[int]
    sparsities: list[float]

    def select(self, method: str, sparsity: float | None = None, control: str | None = None) -> list[Row]:
        """The rows of one method, of one sparsity if it is given."""
        near = [r for r in self.rows if sparsity is None or math.isclose(r["target_sparsity"], sparsity, abs_tol=1e-6)]
        return [r for r in near if r["method"] == method and r["control"] == control]

    def falls_short(self, method: str, sparsity: float) -> float | None:
        """What a method really removed, where that is over half a point less than it was to; it can't win then."""
        removed = mean(cells(self.select(method, sparsity), "realised_sparsity"))
        return removed.value if removed and removed.value < sparsity - 0.005 else None

    def off_target(self, method: str, sparsity: float) -> float | None:
        """What a method really removed, where that is over half a point from what it was to."""
        removed = mean(cells(self.select(method, sparsity), "realised_sparsity"))
        return removed.value if removed and abs(removed.value - sparsity) > 0.005 else None

    def tested_on(self, method: str, sparsity: float) -> tuple[int, int]:
        """How many tasks a method was tested on, and how many any was: a mean over fewer compares with no other."""
        tasks = {m: {row["task"] for row in self.select(m, sparsity)} for m in self.methods}
        return len(tasks.get(method, ())), len(set().union(*tasks.values()))

    def in_part(self, method: str, sparsity: float) -> bool:
        """Whether a method was tested on some tasks and not on all that others were."""
        own, all_tasks = self.tested_on(method, sparsity)
        return 0 < own < all_tasks

    def comparable(self, method: str, sparsity: float) -> bool:
        """Whether a method removed what it was to and was tested on all tasks."""
        return self.falls_short(method, sparsity) is None and not self.in_part(method, sparsity)

    def lowest(self, sparsity: float) -> str | None:
        """The method with the lowest mean loss, of those that compare; None where it is alone."""
        equal = [m for m in self.methods if self.select(m, sparsity) and self.comparable(m, sparsity)]
        means = {m: found.value for m in equal if (found := mean(main_loss(self, m, sparsity)))}
        known = {m: value for m, value in means.items() if not math.isnan(value)}
        return min(known, key=known.__getitem__) if len(known) > 1 else None


def join(sources: Sequence[Source]) -> Comparison | None:
    """All rows of these `compare` files, set against their dense rows; None where there is no row."""
    raw = [row for s in sources for row in s.data["rows"]]
    if not raw:
        return None
    dense = [row for row in raw if row["method"] == "dense"]
    losses, accuracies = _dense_values(dense, "loss"), _dense_values(dense, "acc")
    rows = []
    for row in raw:
        filled = {"control": None, "made_for": None, "acc": None} | row
        key = (row["task"], row["seed"])
        base, acc = (found.get(key, found.get((row["task"], None))) for found in (losses, accuracies))
        filled["added_loss"] = None if base is None else row["loss"] - base
        filled["acc_change"] = None if acc is None or filled["acc"] is None else filled["acc"] - acc
        rows.append(filled)
    main = [r for r in rows if r["method"] != "dense"]
    methods = in_order(main)
    return Comparison(
        rows=rows,
        overlap=[o for s in sources for o in s.data.get("overlap") or []],
        methods=methods,
        judged=next(iter(methods), None),
        tasks=list(dict.fromkeys(r["task"] for r in rows)),
        seeds=sorted({r["seed"] for r in main}),
        sparsities=sorted({r["target_sparsity"] for r in main}),
    )


def _dense_values(dense: Sequence[Row], key: str) -> dict[tuple[str, int | None], float]:
    """By task and seed, and by task alone for seeds that have no dense row of their own."""
    known = [r for r in dense if r.get(key) is not None]
    by_task = {(r["task"], None): average(o[key] for o in known if o["task"] == r["task"]) for r in known}
    return by_task | {(r["task"], r["seed"]): r[key] for r in known}


def in_order(rows: Sequence[Row]) -> list[str]:
    """The methods of rows in an order that tells: the judged one, its variants, the others by what they lose.

    Judged is `seap`, or the first of its variants, or the first method of all.
    """
    named = list(dict.fromkeys(row["method"] for row in rows))
    family = [method for method in named if is_ours(method)]
    judged = "seap" if "seap" in family else next(iter([*family, *named]), None)
    lost: dict[str, list[float]] = {}
    for row in rows:
        if row["control"] is None:
            lost.setdefault(row["method"], []).append(row["loss"] if row["added_loss"] is None else row["added_loss"])
    means = {method: average(values) for method, values in lost.items()}

    def place(method: str) -> tuple[bool, bool, float]:
        found = means.get(method, math.inf)
        return method != judged, not is_ours(method), math.inf if math.isnan(found) else found

    return sorted(named, key=place)


def is_ours(method: str) -> bool:
    """Whether a method is of this project and not the paper's or another's."""
    return method not in PUBLISHED and (method == "seap" or method.startswith(("seap-", "seap+", "seap_")))


def best_baseline(data: Comparison, sparsity: float) -> str | None:
    """The method of others with the lowest mean added loss (of loss, where no dense row is there).

    Of those that removed what they were to on all tasks, if there are any. The paper's methods are among the others.
    """
    others = [m for m in data.methods if not is_ours(m) and m != data.judged and data.select(m, sparsity)]
    equal = [m for m in others if data.comparable(m, sparsity)]
    means = {m: mean(main_loss(data, m, sparsity)) for m in equal or others}
    known = {m: found.value for m, found in means.items() if found and not math.isnan(found.value)}
    return min(known, key=known.__getitem__) if known else None


def main_loss(data: Comparison, method: str, sparsity: float) -> Cells:
    """Added loss by task and seed, or loss where no dense row is there."""
    rows = data.select(method, sparsity)
    return cells(rows, "added_loss") or cells(rows, "loss")
