"""What a setting of the default method is worth on text that decides nothing else.

    python runs/quality/held_out.py SMOLLM2 --task arc_easy=TASKS/arc_easy gsm8k=DATA/gsm8k \\
        --settings fisher_tokens=4096 heads=query --sparsity 0.2 0.5 [--than FILE] --out FILE

Fits on one half of a task's training texts and tests on the other, so that a setting may follow from it. A row for
each setting (`key=value,…`, options of `seap.prune`), the default first; beside each other setting's KL and loss the
difference from the default's with its standard error over the same texts. The file is written after every row, and a
second run goes on where it stopped. With --than a file that another state of the code made, rows are held against its
rows of the same setting, texts and seed too (`kl_less_than`, `loss_less_than`).
"""

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from first_places import halves
from real_rows import added, named

from seap.activations.calibration import calibrate
from seap.environment import provenance
from seap.evaluation.evaluate import Test, loss_rows
from seap.evaluation.likeness import Reference, loss_and_likeness
from seap.evaluation.metrics import Row
from seap.evaluation.options import Evaluation
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import prune
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import build_corpus, longest_sequence
from seap.text.options import Calibration
from seap.text.tasks import parse_spec

DEFAULT = "default"


def options_of(setting: str) -> dict[str, Any]:
    pairs = [part.split("=", 1) for part in setting.split(",")] if setting != DEFAULT else []
    return {key: yaml.safe_load(value) for key, value in pairs}


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """By their keys."""
    return {row["key"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def told(row: dict[str, Any], base: dict[str, Any], less: str = "default") -> dict[str, Any]:
    """A row with how far it is from another one, by default the default's, per token over the same texts."""
    found = {}
    for name in ("kl", "loss"):
        found |= named(f"{name}_less_{less}", added(row["sums"][name], base["sums"][name]))
    return row | found


def network(
    model: Any, ranking: Any, sparsity: float, how: dict[str, Any], reference: Reference, rows: Sequence[Row]
) -> dict[str, Any]:
    pruned, started = deepcopy(model), time.process_time()
    report = prune(pruned, ranking=ranking, sparsity=sparsity, progress=False, **how)
    spent = time.process_time() - started
    loss, kl, same = loss_and_likeness(pruned, reference, rows)
    return {
        "sparsity": sparsity,
        "realised_sparsity": report.realised_sparsity,
        "loss": loss.value,
        "kl": kl.value,
        "kl_stderr": kl.stderr,
        "agreement": same.value,
        "n": kl.n,
        "cpu_seconds": spent,
        "sums": {"kl": [list(pair) for pair in kl.sums], "loss": [list(pair) for pair in loss.sums]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE,…")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--num-texts", type=int, default=10**6)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--test-items", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--than", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    model, tokenizer = loader.load_for_work(a.model)
    reading = Calibration(
        num_texts=a.num_texts,
        max_tokens=a.tokens,
        seq_len=512,
        second_moments=True,
        wording="plain",  # as the texts of the test are
        seed=a.seed,
    )
    seq_len = longest_sequence(model, reading)
    made = rows_of(a.out) if a.out.exists() else {}
    for spec in a.task:
        task, (fit, held) = parse_spec(spec).name, halves(spec)
        test = Evaluation(num_items=a.test_items, window=512)
        rows = [row for _, row in loss_rows(tokenizer, Test(task, tuple(held), "loss"), test, longest=seq_len)]
        corpus = build_corpus(task, fit, tokenizer, reading, source="first half", seq_len=seq_len)
        about = {"model": Path(a.model).name, "task": task, "tokens": corpus.num_tokens, "seed": a.seed}
        about |= {"data_hash": corpus.data_hash, "test_hash": digest([row.ids for row in rows])}
        statistics, reference = None, Reference(model)
        for setting in (DEFAULT, *a.settings):
            keys = {sparsity: digest([about, setting, sparsity]) for sparsity in a.sparsity}
            keys = {sparsity: key for sparsity, key in keys.items() if key not in made}
            if not keys:
                continue
            how = {"method": "seap"} | options_of(setting)
            statistics = statistics or calibrate(model, corpus, reading, progress=False)
            ranking = rank(model, {task: statistics}, Pruning(**how), seed=a.seed)
            for sparsity, key in keys.items():
                found = {"key": key, "setting": setting} | about
                found |= network(model, ranking, sparsity, how, reference, rows)
                base = made.get(digest([about, DEFAULT, sparsity]), found)
                made[key] = told(found, base)
                shown = {k: v for k, v in made[key].items() if k not in ("sums", "key", "data_hash", "test_hash")}
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
                write_json(a.out, {"kind": "held out", "rows": list(made.values())} | provenance())
    if a.than:
        others = rows_of(a.than)
        rows = [told(row, others[key], "than") if key in others else row for key, row in made.items()]
        write_json(a.out, {"kind": "held out", "rows": rows} | provenance())


if __name__ == "__main__":
    main()
