"""Prune a model at 50% for each of several kinds of text and measure the loss on held-out text of that kind.

    python runs/quality/prune_natural.py MODEL DATA --out out/prune_natural.json

DATA holds one folder per kind, with train.* and test.* (column `text`). Every method sees the same calibration text
(the kind's own) and removes the same share of parameters. quality_natural.sh has since asked
the same with four times the text.
"""

import argparse
import time
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seap.activations.calibration import calibrate
from seap.environment import provenance
from seap.evaluation.metrics import Row, loss
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning import prune as pruning
from seap.selection.options import Pruning
from seap.text.corpus import build_corpus
from seap.text.options import Calibration
from seap.text.tasks import load_items, parse_spec

METHODS = ("seap-paper", "seap", "flap", "wanda-sp", "magnitude", "random")
CALIBRATION = Calibration(num_texts=2000, seq_len=256, pack=True, max_tokens=64 * 256)
HELD_OUT = Calibration(num_texts=2000, seq_len=256, pack=True, max_tokens=48 * 256)


def held_out(spec: str, tokenizer: Any) -> list[Row]:
    texts = [item.text for item in load_items(parse_spec(spec), "test")]
    return [Row(ids) for ids in build_corpus(spec, texts, tokenizer, HELD_OUT, source="test").rows]


def measure(model: Any, tokenizer: Any, spec: str, seeds: range, sparsity: float) -> list[dict[str, Any]]:
    """One row per method and seed, and one for the dense model."""
    kind = parse_spec(spec).name
    test = held_out(spec, tokenizer)
    dense = loss(model, test)
    rows = [row(kind, "dense", 0.0, 0.0, 0, dense, dense.value)]
    for seed in seeds:
        options = replace(CALIBRATION, seed=seed)
        corpus = pruning.build_corpora(model, tokenizer, spec, options)[kind]
        statistics = calibrate(model, corpus, options, progress=False)
        for method in METHODS:
            pruned = deepcopy(model)
            choices = asdict(Pruning(sparsity=sparsity, method=method)) | {"seed": seed}
            report = pruning.prune(pruned, statistics={kind: statistics}, **choices)
            figure = loss(pruned, test)
            entry = row(kind, method, sparsity, report.realised_sparsity, seed, figure, dense.value)
            rows.append(entry | {"calibration_tokens": corpus.num_tokens, "data_hash": corpus.data_hash})
    return rows


def row(kind: str, method: str, target: float, realised: float, seed: int, figure: Any, dense: float) -> dict[str, Any]:
    return {
        "task": kind,
        "method": method,
        "target_sparsity": target,
        "realised_sparsity": realised,
        "seed": seed,
        "loss": figure.value,
        "loss_stderr": figure.stderr,
        "n": figure.n,
        "added_loss": figure.value - dense,
    }


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Added loss of each method, mean over kinds and seeds."""
    found: dict[str, list[float]] = {}
    for entry in rows:
        found.setdefault(entry["method"], []).append(entry["added_loss"])
    return {method: sum(values) / len(values) for method, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    started = time.perf_counter()
    loader.quiet_transformers()
    model, tokenizer = loader.load(arguments.model, dtype="float32", device="cpu")
    kinds = sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    rows: list[dict[str, Any]] = []
    for kind in tqdm(kinds, desc="kinds"):
        spec = f"{kind}={arguments.data / kind}"
        rows += measure(model, tokenizer, spec, range(arguments.seeds), arguments.sparsity)
    result = {
        "mean_added_loss": means(rows),
        "rows": rows,
        **provenance(),
        "data_hash": digest([entry.get("data_hash") for entry in rows]),
        "seeds": arguments.seeds,
        "seconds": time.perf_counter() - started,
    }
    write_json(arguments.out, result)
    for method, value in sorted(result["mean_added_loss"].items(), key=lambda pair: pair[1]):
        print(f"{method:12} added loss {value:.3f}")


if __name__ == "__main__":
    main()
