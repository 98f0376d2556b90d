"""Which places of a prompt must count beside its answer: none, the first of each row, or a quarter of them, drawn.

    python runs/quality/first_places.py MODEL --task NAME=PATH [--tokens 4096] --out FILE

Fits on one half of the task's training texts and tests on the other, so that a setting can follow from it: loss, KL and
agreement with the dense model on the answers' tokens. Networks are made in closed form (`--allocate logistic
--no-sequential`) or, with --default, as `seap prune` makes them, from the same texts in every variant. A row each; the
file is written after every one.
"""

import argparse
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from right_tokens import add_method, method_of

from seap.activations.calibration import calibrate
from seap.environment import provenance
from seap.evaluation.evaluate import Test, loss_rows
from seap.evaluation.likeness import Reference, loss_and_likeness
from seap.evaluation.metrics import Row, loss
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.models import loader
from seap.pruning.prune import prune
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import Corpus, build_corpus, longest_sequence
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.rows import CountedRow
from seap.text.tasks import load_items, parse_spec

Marks = tuple[bool, ...]


def all_places(marks: Marks) -> Marks:
    return (True,) * len(marks)


def answers_alone(marks: Marks) -> Marks:
    return (len(marks) > 1 and marks[0] and marks[1], *marks[1:])  # a first place counts for no answer but a bare one's


def with_first(marks: Marks) -> Marks:
    return (True, *marks[1:])


def with_a_quarter(marks: Marks) -> Marks:
    drawn = random.Random(len(marks))
    return tuple(mark or drawn.random() < 0.25 for mark in answers_alone(marks))


VARIANTS: dict[str, Callable[[Marks], Marks]] = {
    "all": all_places,
    "answers": answers_alone,
    "answers and first places": with_first,
    "answers and a quarter": with_a_quarter,
}


def marked(corpus: Corpus, change: Callable[[Marks], Marks]) -> Corpus:
    """The corpus with other places counted."""
    rows = [row for row in corpus.rows if isinstance(row, CountedRow)]
    return replace(corpus, rows=tuple(CountedRow(row, change(row.counted)) for row in rows))


def measured(model: Any, reference: Reference, rows: list[Row]) -> dict[str, float]:
    after, kl, same = loss_and_likeness(model, reference, rows)
    return {"loss": after.value, "kl": kl.value, "kl_stderr": kl.stderr, "agreement": same.value, "n": after.n}


def halves(spec: str) -> tuple[list[Item], list[Item]]:
    items = load_items(spec, "train")
    middle = len(items) // 2
    return items[:middle], items[middle:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", nargs="+", required=True, metavar="NAME=PATH", help="with prompts and answers")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--counted", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add_method(parser, score="wifv")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--test-items", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/quality/first_places.json"))
    a = parser.parse_args()
    model, tokenizer = loader.load_for_work(a.model)
    reading = Calibration(num_texts=10**6, max_tokens=a.tokens, seq_len=512, weigh="answer", seed=a.seed)
    how = method_of(a)
    found: list[dict[str, Any]] = []
    told = {"kind": "first places", "model": Path(a.model).name, "method": how, "rows": found}
    for spec in a.task:
        task, (fit, held) = parse_spec(spec).name, halves(spec)
        test = Evaluation(num_items=a.test_items, window=512, weigh="answer")
        longest = getattr(model.config, "max_position_embeddings", None)
        rows = [row for _, row in loss_rows(tokenizer, Test(task, tuple(held), "loss"), test, longest=longest)]
        dense, reference = loss(model, rows).value, Reference(model)
        seq_len = longest_sequence(model, reading)
        corpus = build_corpus(task, fit, tokenizer, reading, source="first half", seq_len=seq_len)
        for name in a.counted:
            own = marked(corpus, VARIANTS[name])
            statistics = calibrate(model, own, Calibration(second_moments=True), progress=False)
            ranking = rank(model, {task: statistics}, Pruning(**how), seed=a.seed)
            for sparsity in a.sparsity:
                pruned = deepcopy(model)
                report = prune(pruned, ranking=ranking, sparsity=sparsity, progress=False, **how)
                about = {"task": task, "counted": name, "places": own.num_counted, "tokens": own.num_tokens}
                about |= {"sparsity": sparsity, "realised_sparsity": report.realised_sparsity, "dense_loss": dense}
                found.append(about | measured(pruned, reference, rows) | {"data_hash": corpus.data_hash})
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in found[-1].items()}, flush=True)
                write_json(a.out, told | provenance())


if __name__ == "__main__":
    main()
