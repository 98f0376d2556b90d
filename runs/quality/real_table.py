"""The rows of `real_models.py` as one result: a cell per model, task, method and sparsity, means, what holds of them.

Accuracy is looked at where the dense model is above guessing by more than two standard errors; other tasks count by
loss alone. Ratios are of means over the cases (model, task, seed) that both sides have. A rival is any method that is
not seap's default; the published SEAP counts as one.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.environment import provenance
from seap.files import digest, write_json

Row = dict[str, Any]
Case = tuple[str, str, int]  # model, task, seed
OURS = "seap"
NOT_RIVALS = (OURS, "seap-all", "dense", "random")
KEPT = (0.95, 0.9)
TARGETS = {0.2: (1 / 3, 0.35), 0.3: (1 / 3, 0.35), 0.5: (0.4, 0.4)}  # of the best rival's: accuracy lost, loss added
SHOWN = ("loss", "added_loss", "kl", "agreement", "acc", "added_acc", "acc_norm", "added_acc_norm", "said", "recall")
SHOWN += ("loops", "endless")
WHOSE = ("model", "task", "method", "made_for", "control", "target_sparsity", "realised_sparsity", "seed")


def read_rows(out: Path) -> list[Row]:
    rows = [json.loads(path.read_text()) for path in sorted((out / "rows").glob("*/*/*.json"))]
    if not rows:
        raise SystemExit(f"{out} has no rows yet")
    return rows


def cell(row: Row) -> Row:
    """What is shown of a row: figures with their errors, without the items."""
    found = {name: row.get(name) for name in WHOSE}
    for name in SHOWN:
        if row.get(name) is not None:
            found |= {name: row[name], f"{name}_stderr": row.get(f"{name}_stderr")}
    off = [part["added_loss"] for part in row.get("off_task", {}).values()]
    found["off_task_added_loss"] = sum(off) / len(off) if off else None
    names = (
        "n",
        "acc_metric",
        "also_of",
        "prompts",
        "chance",
        "recall_n",
        "said_n",
        "loss_n",
        "calibration_tokens",
        "pruning_seconds",
        "data_hash",
        "commit",
    )
    return found | {name: row[name] for name in names if row.get(name) is not None}


class Table:
    """Rows by case, method and sparsity; controls are only shown."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.dense = {(row["model"], row["task"]): row for row in rows if row["method"] == "dense"}
        own = [row for row in rows if row["method"] != "dense" and not row.get("control")]
        self.rows: dict[tuple[str, float], dict[Case, Row]] = defaultdict(dict)
        for row in own:
            if row["made_for"] in (None, row["task"], "general", row.get("also_of")):
                case = (row["model"], row["task"], row["seed"])
                self.rows[row["method"], row["target_sparsity"]][case] = row
        self.methods = list(dict.fromkeys(method for method, _ in self.rows))
        self.sparsities = sorted({sparsity for _, sparsity in self.rows})

    def above_chance(self, case: Case) -> bool:
        """Whether the dense model's accuracy by choice says anything."""
        row = self.dense[case[:2]]
        return row.get("acc") is not None and row["acc"] - row["chance"] > 2 * row["acc_stderr"]

    def cases(self, method: str, sparsity: float, *, known: Callable[[Case], bool] = lambda case: True) -> set[Case]:
        return {case for case in self.rows.get((method, sparsity), {}) if known(case)}

    def mean(self, method: str, sparsity: float, cases: Iterable[Case], name: str) -> tuple[float, float] | None:
        """Over cases that have the figure, with the standard error that the items' own errors make."""
        found = [self.rows[method, sparsity][case] for case in sorted(cases)]
        found = [row for row in found if row.get(name) is not None]
        if not found:
            return None
        errors = [row.get(f"{name}_stderr") or 0.0 for row in found]
        return sum(row[name] for row in found) / len(found), math.sqrt(sum(e * e for e in errors)) / len(found)


def means(table: Table) -> list[Row]:
    """Per method and sparsity over all cases that it has; `complete` where it has those of every other method."""
    found = []
    for sparsity in table.sparsities:
        all_cases = set().union(*(table.cases(method, sparsity) for method in table.methods))
        for method in table.methods:
            cases = table.cases(method, sparsity)
            if not cases:
                continue
            row: Row = {"method": method, "sparsity": sparsity, "cases": len(cases), "complete": cases == all_cases}
            for name in ("added_loss", "kl", "agreement", "said", "recall", "loops", "endless"):
                row |= _named(name, table.mean(method, sparsity, cases, name))
            able = {case for case in cases if table.above_chance(case)}
            row["cases_above_chance"] = len(able)
            for name in ("acc", "added_acc", "acc_norm", "added_acc_norm"):
                row |= _named(name, table.mean(method, sparsity, able, name))
            found.append(row)
    return found


def _named(name: str, pair: tuple[float, float] | None) -> Row:
    return {} if pair is None else {name: pair[0], f"{name}_stderr": pair[1]}


def ratios(table: Table) -> list[Row]:
    """seap's loss of accuracy and its added loss over the best rival's, by sparsity, beside the targets.

    The best of those that have the most of seap's cases; the others, on the cases that they have, are in `of_fewer`.
    """
    found = []
    for sparsity in table.sparsities:
        row: Row = {"sparsity": sparsity}
        wanted = TARGETS.get(sparsity)
        for name, sign, known, target in (
            ("added_acc", -1, table.above_chance, wanted and wanted[0]),
            ("added_loss", 1, lambda case: True, wanted and wanted[1]),
        ):
            against = [_against(table, sparsity, rival, name, sign, known) for rival in table.methods]
            rivals = [one for one in against if one is not None]
            if rivals:
                most = max(one["cases"] for one in rivals)
                best = min((one for one in rivals if one["cases"] == most), key=lambda one: one["rival_lost"])
                fewer = [one for one in rivals if one["cases"] < most]
                kept = None if target is None else best["ratio"] <= target
                row[name] = best | {"target": target, "kept": kept, "of_fewer": fewer}
        found.append(row)
    return found


def _against(
    table: Table, sparsity: float, rival: str, name: str, sign: int, known: Callable[[Case], bool]
) -> Row | None:
    """What both lose on the cases that both have. A ratio is seap's over the rival's; 0 where seap loses nothing."""
    cases = table.cases(OURS, sparsity, known=known) & table.cases(rival, sparsity, known=known)
    if rival in NOT_RIVALS or not cases:
        return None
    pairs = [table.mean(method, sparsity, cases, name) for method in (OURS, rival)]
    if pairs[0] is None or pairs[1] is None:
        return None
    own, theirs = sign * pairs[0][0], sign * pairs[1][0]
    ratio = max(own, 0.0) / theirs if theirs > 0 else (math.inf if own > 0 else 0.0)
    told = {"rival": rival, "cases": len(cases), "lost": own, "rival_lost": theirs, "ratio": ratio}
    return told | {"lost_stderr": pairs[0][1], "rival_lost_stderr": pairs[1][1]}


def keeps(table: Table) -> list[Row]:
    """The largest sparsity at which a method keeps 95 and 90% of the dense model's score, by choice and by generation.

    By choice: accuracy where the dense model is above guessing. By generation: what is said in free form, generated
    answers and programs that pass, where the dense model gets at least a tenth right. Means of scores over cases, their
    ratio, and between two sparsities a straight line.
    """
    found = []
    for method in table.methods:
        for model in sorted({model for model, _ in table.dense}):
            for kind, score in (("choice", _by_choice), ("generation", _by_generation)):
                curve = _curve(table, method, model, score)
                if len(curve) > 1:
                    row: Row = {"method": method, "model": model, "by": kind, "share_kept": curve}
                    found.append(row | {f"{share:.0%}": _crossing(curve, share) for share in KEPT})
    return found


def _by_choice(table: Table, row: Row, case: Case) -> float | None:
    if not table.above_chance(case) or row.get("acc_metric") not in ("multiple choice", "continuation among four"):
        return None
    return float(row["acc"])


def _by_generation(table: Table, row: Row, case: Case) -> float | None:
    dense = table.dense[case[:2]]
    name = "said" if dense.get("said") is not None else "acc"
    if name == "acc" and dense.get("acc_metric") not in ("exact match", "pass@1"):
        return None
    return float(row[name]) if (dense.get(name) or 0.0) >= 0.1 and row.get(name) is not None else None


def _curve(
    table: Table, method: str, model: str, score: Callable[[Table, Row, Case], float | None]
) -> dict[float, float]:
    """Sparsity → share of the dense model's score that is left, over the cases of each sparsity."""
    curve = {0.0: 1.0}
    for sparsity in table.sparsities:
        own, whole = 0.0, 0.0
        for case, row in table.rows.get((method, sparsity), {}).items():
            left, before = score(table, row, case), score(table, table.dense[case[:2]], case)
            if case[0] == model and left is not None and before is not None:
                own, whole = own + left, whole + before
        if whole:
            curve[sparsity] = own / whole
    return curve


def _crossing(curve: Mapping[float, float], share: float) -> Row:
    """Where a curve falls below a share; `beyond` where it doesn't within what was tried."""
    points = sorted(curve.items())
    for (a, high), (b, low) in itertools.pairwise(points):
        if low < share:
            return {"sparsity": a + (b - a) * (high - share) / (high - low), "beyond": False}
    return {"sparsity": points[-1][0], "beyond": True}


def machine_of(row: Row) -> Row:
    """Where a row was made, and with what: the file's own machine is where the table was."""
    return {"machine": row.get("machine"), "versions": row.get("versions")}


def unlike(found: Iterable[Row]) -> list[Row]:
    """Each of them once, in the order in which they come."""
    return [json.loads(text) for text in dict.fromkeys(json.dumps(one, sort_keys=True) for one in found)]


def write_table(out: Path, result: Path) -> None:
    rows = read_rows(out)
    table = Table(rows)
    settings = json.loads((out / "settings.json").read_text())
    about = {"kind": "real models", "models": settings["models"], "settings": settings["settings"]}
    found = {
        "means": means(table),
        "ratios": ratios(table),
        "keeps": keeps(table),
        "cells": [cell(row) for row in rows],
        "data_hash": digest([row.get("data_hash") for row in rows]),
        "commits": sorted({str(row.get("commit")) for row in rows}),
        "commands": sorted({str(row.get("command")) for row in rows}),
        "made_on": unlike([machine_of(row) for row in rows]),
    }
    write_json(result, about | found | provenance())
    for row in found["ratios"]:
        for name in ("added_acc", "added_loss"):
            if name in row:
                best = row[name]
                print(f"{row['sparsity']:.0%} {name}: {best['ratio']:.2f} of {best['rival']} ({best['cases']} cases)")
    print(f"{len(rows)} rows → {result}")
