"""What a task's vocabulary costs and saves: tokens kept, unseen text covered, nats per byte added, bytes of the model.

    python runs/quality/vocabulary.py MODEL TASK=PATH [TASK=PATH …] [--items 50] [--vocabulary auto] [--out FILE]

Nothing else is cut. The vocabulary is chosen on the task's training text; figures are of its test text, which no choice
has seen. Rows of other models and tasks that the file has stay.
"""

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from seap.environment import provenance
from seap.evaluation import metrics
from seap.evaluation.evaluate import load_test, per_byte, prepare
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.models import loader
from seap.models.arch import embedding_params
from seap.pruning.prune import prune
from seap.text.encode import encode


def share_covered(tokenizer: Any, smaller: Any, items: Any, options: Evaluation) -> float:
    """Of the tokens of these texts, those that the smaller vocabulary still has."""
    there = set(smaller.get_vocab())
    tokens = [
        token for item in items for token in tokenizer.convert_ids_to_tokens(encode(tokenizer, item, options).ids)
    ]
    return sum(token in there for token in tokens) / len(tokens)


@torch.no_grad()
def logits(model: Any, ids: Any) -> torch.Tensor:
    """(T, V)"""
    found: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return found


def largest_difference(model: Any, tokenizer: Any, whole: Any, before: Any) -> dict[str, float]:
    """Of the logits of tokens that stay, on the first texts whose tokens all stay; before: ids → logits, dense."""
    kept = whole.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    new, found = {old: i for i, old in enumerate(kept)}, []
    for ids, expected in before.items():
        if all(i in new for i in ids):
            apart = logits(model, [new[i] for i in ids]) - expected[:, kept]
            found.append(float(apart.abs().max()))
    return {"texts_that_stay": len(found), "largest_difference_of_their_logits": max(found, default=0.0)}


def measure(name: str, spec: str, items: int, **options: Any) -> dict[str, Any]:
    """A row: the model with the vocabulary of one task beside the whole one, on unseen text."""
    started = time.process_time()
    model, tokenizer = loader.load_for_work(name, device="cpu")
    whole = deepcopy(tokenizer)
    settings = Evaluation(metric="loss", num_items=items)
    test = load_test(spec, settings)
    exam = prepare(test, model, tokenizer, settings, every_window=True)
    dense = per_byte(metrics.loss(model, exam.windows), exam)
    before = {row.ids: logits(model, row.ids) for row in exam.windows[:5]}
    size, params = model.config.vocab_size, sum(p.numel() for p in model.parameters())
    report = prune(model, tokenizer, task=spec, sparsity=0, **options)
    cut = report.vocabulary
    assert cut is not None
    exam = prepare(test, model, tokenizer, settings, every_window=True)
    own = per_byte(metrics.loss(model, exam.windows), exam)
    itemsize = 2  # bfloat16, as the models are stored
    return {
        "model": Path(name).name,
        "task": test.name,
        "tokenizer": cut["tokenizer"],
        "asked": cut["asked"],
        "tolerance": cut.get("tolerance"),
        "tokens_before": size,
        "tokens_after": cut["tokens_after"],
        "covered_unseen": share_covered(whole, tokenizer, test.items, settings),
        "test_items": len(test.items),
        "nats_per_byte_dense": dense["nats_per_byte"],
        "nats_per_byte": own["nats_per_byte"],
        "nats_per_byte_added": own["nats_per_byte"] - dense["nats_per_byte"],
        "nats_per_byte_added_held_out": cut.get("nats_per_byte"),
        "tried": cut.get("tried"),
        **largest_difference(model, tokenizer, whole, before),
        "bytes_before": params * itemsize,
        "bytes_after": report.params_after * itemsize,
        "embedding_share_before": cut["params_before"] / params,
        "embedding_share_after": embedding_params(model) / report.params_after,
        "processor_seconds": time.process_time() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+", metavar="TASK=PATH")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--vocabulary", default="auto")
    parser.add_argument("--tolerance", type=float, default=0.002)
    parser.add_argument("--out", type=Path, default=Path("results/quality/vocabulary.json"))
    given = parser.parse_args()
    asked: Any = given.vocabulary if given.vocabulary == "auto" else int(given.vocabulary)
    options = {"vocabulary": asked, "vocabulary_tolerance": given.tolerance}
    if asked != "auto":
        del options["vocabulary_tolerance"]
    rows = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    for spec in given.tasks:
        row = measure(given.model, spec, given.items, **options)
        key = [row[name] for name in ("model", "task", "asked", "tolerance")]
        rows = [r for r in rows if [r[name] for name in ("model", "task", "asked", "tolerance")] != key] + [row]
        write_json(given.out, {"kind": "vocabulary", "rows": rows} | provenance())
        print(json.dumps({name: value for name, value in row.items() if name != "tried"}, indent=2), flush=True)


if __name__ == "__main__":
    main()
