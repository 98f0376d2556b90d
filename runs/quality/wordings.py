"""Multiple choice calibrated on as plain text, as tests ask, with its choices listed, or by turns: what each is worth.

    python runs/quality/wordings.py MODEL --task arc_easy=TASKS/arc_easy --methods seap flap \\
        --wordings plain asked listed both [--sparsity 0.2 0.5] [--effort quick] --out FILE

Fits on one half of a task's training texts and tests on the other, so that a setting may follow from it. Every method
reads the same tokens, --tokens at most, in the wording of its row. Tested: KL and added loss on the other half, plain
and listed, which of the choices is the likeliest (asked as tests ask), and what is said in free form with the choices
listed. A row each; the file is written after every one, and a second run goes on where it stopped.
"""

import argparse
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from first_places import halves
from held_out import rows_of
from real_rows import added, named

from seap.activations.calibration import calibrate
from seap.environment import provenance
from seap.evaluation.evaluate import Exam, Test, evaluate, prepare
from seap.evaluation.likeness import Reference
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.models import loader
from seap.pruning.prune import prune
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import build_corpus, longest_sequence
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.tasks import parse_spec
from seap.text.wording import prompt_of, worded

Exams = dict[str, Exam]


@dataclass(frozen=True)
class Task:
    """What networks are made of and tested on. dense: the dense model's figures by wording."""

    name: str
    key: str
    about: dict[str, Any]
    fit: list[Item]
    exams: Exams
    dense: dict[str, Any]
    reference: Reference


def exams_of(task: str, held: list[Item], model: Any, tokenizer: Any, a: argparse.Namespace) -> Exams:
    """By wording: choices, asked as tests ask, and the loss on plain text; the loss where choices are listed."""
    held = held[: a.items]
    test = Evaluation(num_items=a.items, num_windows=a.windows, say="listed", say_items=a.say_items, max_new_tokens=64)
    asked = [item if item.is_continued else replace(item, question=prompt_of(item.question or "")) for item in held]
    listed = [worded(item, 0, "listed") for item in held]
    return {
        "plain": prepare(Test(task, tuple(held), "multiple-choice"), model, tokenizer, test, questions=asked),
        "listed": prepare(Test(task, tuple(listed), "loss"), model, tokenizer, test),
    }


def tested(model: Any, exams: Exams, dense: dict[str, Any] | None, reference: Reference | None) -> dict[str, Any]:
    """Figures by wording; what was added to the dense model's loss, over the same windows."""
    found = {}
    for wording, exam in exams.items():
        row = evaluate(model, exam, reference=reference, details=True)
        windows = row.pop("details")["windows"]
        if dense is not None:
            row |= named("added_loss", added(windows, dense[wording]["windows"]))
        found[wording] = row | {"windows": [list(pair) for pair in windows]}
    return found


def told(key: str, row: dict[str, Any]) -> str:
    plain, listed = row["tests"]["plain"], row["tests"]["listed"]
    names = ("loss", "kl", "acc", "acc_norm", "said", "loops", "endless")
    shown = {name: round(plain[name], 3) for name in names if plain.get(name) is not None}
    shown |= {f"{name} listed": round(listed[name], 3) for name in ("loss", "kl") if listed.get(name) is not None}
    return f"{time.strftime('%H:%M:%S')} {key}: {shown}"


class Kept:
    """Rows by their keys, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, rows_of(path) if path.exists() else {}

    def add(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        self.rows[key] = row | {"key": key}
        print(told(key, row), flush=True)
        write_json(self.path, {"kind": "wordings", "rows": list(self.rows.values())} | provenance())
        return self.rows[key]


def rows_in(wording: str, model: Any, tokenizer: Any, task: Task, kept: Kept, a: argparse.Namespace) -> None:
    """Networks of all methods and sparsities from the task's text in one wording, those that aren't there."""
    reading = Calibration(
        num_texts=a.num_texts, max_tokens=a.tokens, seq_len=512, second_moments=True, wording=wording, seed=a.seed
    )
    seq_len = longest_sequence(model, reading)
    corpus = build_corpus(task.name, task.fit, tokenizer, reading, source="first half", seq_len=seq_len)
    about = task.about | {"wording": wording, "tokens": corpus.num_tokens, "data_hash": corpus.data_hash}
    about |= {"texts": len(corpus.rows), "in_template": corpus.in_template}
    statistics = None
    for method in a.methods:
        how = {"method": method} | ({"effort": a.effort} if method == "seap" else {})
        name = " ".join([task.key, *how.values(), wording, f"seed{a.seed}"])
        missing = [sparsity for sparsity in a.sparsity if f"{name} {sparsity:g}" not in kept.rows]
        if not missing:
            continue
        statistics = statistics or calibrate(model, corpus, reading, progress=False)
        ranking = rank(model, {task.name: statistics}, Pruning(**how), seed=a.seed)
        for sparsity in missing:
            pruned, started = deepcopy(model), time.perf_counter()
            report = prune(pruned, ranking=ranking, sparsity=sparsity, progress=False, **how)
            row = about | how | {"sparsity": sparsity, "realised_sparsity": report.realised_sparsity}
            row |= {"pruning_seconds": time.perf_counter() - started}
            kept.add(f"{name} {sparsity:g}", row | {"tests": tested(pruned, task.exams, task.dense, task.reference)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--methods", nargs="+", default=["seap", "flap"])
    parser.add_argument("--wordings", nargs="+", default=["plain", "asked", "listed", "both"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--effort", default=Pruning.effort)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--num-texts", type=int, default=400)
    parser.add_argument("--items", type=int, default=200, help="of the other half, by choice")
    parser.add_argument("--windows", type=int, default=100, help="that losses are measured on")
    parser.add_argument("--say-items", type=int, default=64, help="of these in free form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    model, tokenizer = loader.load_for_work(a.model)
    kept, reference = Kept(a.out), Reference(model)
    for spec in a.task:
        name, (fit, held) = parse_spec(spec).name, halves(spec)
        exams = exams_of(name, held, model, tokenizer, a)
        about: dict[str, Any] = {"model": Path(a.model).name, "task": name, "seed": a.seed}
        key = f"{about['model']} {name}"
        row = kept.rows.get(f"{key} dense")
        row = row or kept.add(f"{key} dense", about | {"method": "dense", "tests": tested(model, exams, None, None)})
        task = Task(name, key, about, fit, exams, row["tests"], reference)
        for wording in a.wordings:
            rows_in(wording, model, tokenizer, task, kept, a)


if __name__ == "__main__":
    main()
