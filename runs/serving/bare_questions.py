"""Whether the router knows a task's bare questions, with and without learning from the beginnings of texts.

    python runs/serving/bare_questions.py MODEL NATURAL TASKS

MODEL and NATURAL: natural-7m and the folder of its eight kinds, which have texts alone; TASKS: the folder with the data
sets that some of them were made of, whose questions are asked bare. `mixed` is a router of four of those data sets and
PIQA's texts. Writes results/serving/bare_questions.json; half an hour on one core.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from seap.environment import provenance
from seap.models import loader
from seap.serving.options import USUAL_DEPTH, Routing
from seap.serving.routing.router import Router
from seap.serving.routing.routing import Sample, fit, load_prompts, test, unseen

# name → kind, file and column of the questions; of no kind: unknown to all
BARE = {
    "PIQA's goals": ("piqa", "piqa/plain_text_test_0000.parquet", "goal"),
    "PIQA's goals, validation": ("piqa", "piqa/plain_text_validation_0000.parquet", "goal"),
    "GSM8K's questions": ("gsm8k", "gsm8k/test-00000-of-00001.parquet", "question"),
    "BoolQ's questions": ("boolq", "boolq/test-00000-of-00001.parquet", "question"),
    "ARC's questions": ("science", "ai2_arc/test-00000-of-00001.parquet", "question"),
    "WinoGrande, unknown": (None, "winogrande/winogrande_m_test_0000.parquet", "sentence"),
}
MIXED = ("gsm8k", "boolq", "arc_easy", "hellaswag")


def bare(router: Router, model: Any, tokenizer: Any, tasks: Path) -> dict[str, Any]:
    found = {}
    for name, (kind, file, column) in BARE.items():
        prompts = list(dict.fromkeys(pyarrow.parquet.read_table(tasks / file).column(column).to_pylist()))[:200]
        routes = router.predict(model, tokenizer, prompts)
        found[name] = {
            "abstained": sum(route.task is None for route in routes) / len(routes),
            "right": sum(route.task == kind for route in routes if kind) / len(routes),
        }
    return found


def compared(model: Any, tokenizer: Any, specs: Sequence[str], number: int, tasks: Path) -> dict[str, Any]:
    options = Routing(num_prompts=number)
    train, held = (load_prompts(specs, split, options) for split in ("train", "test"))
    known, tested = (Sample(model, tokenizer, texts, USUAL_DEPTH, options) for texts in (train, held))
    every, found = known.variants, {}
    for name, variants in (("without", tuple(one for one in every if one != "beginning")), ("with", every)):
        known.variants = variants
        router = fit(known, known.tasks, USUAL_DEPTH, options)
        report = test(router, tested)
        abstained = {task: part["abstained"] for task, part in unseen(known, tested, USUAL_DEPTH, options).items()}
        found[name] = {
            "accuracy": report["accuracy"],
            "expected_calibration_error": report["calibration"]["expected_calibration_error"],
            "variants": report["variants"],
            "unseen_abstained": abstained,
            "bare": bare(router, model, tokenizer, tasks),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("natural", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/serving/bare_questions.json"))
    options = parser.parse_args()
    model, tokenizer = loader.load_for_work(options.model, dtype="float32")
    kinds = [f"{folder.name}={folder}" for folder in sorted(options.natural.iterdir())]
    mixed = [*(f"{name}={options.tasks / name}" for name in MIXED), f"piqa={options.natural / 'piqa'}"]
    found = {
        "natural": compared(model, tokenizer, kinds, 256, options.tasks),
        "mixed": compared(model, tokenizer, mixed, 128, options.tasks),
    }
    options.out.write_text(json.dumps(found | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
