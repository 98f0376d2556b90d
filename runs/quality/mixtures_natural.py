"""What mixtures are worth on natural-7m: general text beside a task's, and one network for two tasks.

    python runs/quality/mixtures_natural.py MODEL NATURAL [--kinds code,gsm8k] [--tokens 2048,32768] [--seeds 1]

General text is all other kinds pooled, as much of each as the task has. Every network: score obs, logistic widths,
ridge, nothing refitted (so that a mixture costs seconds), 50% of the prunable parameters unless `--sparsity` is given.
"""

import argparse
import itertools
import statistics
from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from typing import Any

from natural import calibration, test_of
from tqdm import tqdm

from seap.activations.stats import Statistics, merge
from seap.environment import provenance
from seap.evaluation.evaluate import evaluate
from seap.files import write_json
from seap.models import loader
from seap.pruning.prune import build_corpora, calibrate_corpora, prune
from seap.selection.options import Pruning
from seap.selection.ranking import rank

SHARES: tuple[float | str, ...] = (0.0, 0.1, 0.3, 1.0, "auto")
QUICK: dict[str, Any] = {"score": "obs", "allocate": "logistic", "compensate": "ridge", "sequential": False}


class Bench:
    """The dense model, and what a network made of it loses on each kind."""

    def __init__(self, model: str, natural: Path, kinds: list[str], sparsity: float) -> None:
        self.dense, self.tokenizer = loader.load(model, dtype="float32", device="cpu")
        self.natural, self.kinds, self.sparsity = natural, kinds, sparsity
        self.exams = {kind: test_of(kind, natural / kind, self.dense, self.tokenizer) for kind in kinds}
        self.base = {kind: evaluate(self.dense, exam)["loss"] for kind, exam in self.exams.items()}

    def calibrate(self, tokens: int, seed: int) -> tuple[dict[str, Statistics], str]:
        options = calibration(tokens, seed)
        specs = [f"{kind}={self.natural / kind}" for kind in self.kinds]
        corpora = build_corpora(self.dense, self.tokenizer, specs, options)
        hashes = ",".join(corpus.data_hash for corpus in corpora.values())
        return calibrate_corpora(self.dense, corpora, options, progress=False), hashes

    def added_loss(self, found: dict[str, Statistics], seed: int, general: Statistics | None, **options: Any) -> Any:
        """Task → added loss of the network made of these statistics, and what was chosen on the way."""
        pruned = deepcopy(self.dense)
        settings = Pruning(sparsity=self.sparsity, **QUICK, **options)
        ranking = rank(pruned, found, settings, general=general, seed=seed)
        report = prune(pruned, ranking=ranking, sparsity=self.sparsity, progress=False)
        losses = {kind: evaluate(pruned, self.exams[kind])["loss"] - self.base[kind] for kind in found}
        chosen = ranking.options.mix if general is not None else ranking.options.weights
        return losses, chosen, report.realised_sparsity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("natural", type=Path)
    parser.add_argument("--kinds", default="boolq,code,gsm8k,piqa,reviews,science,speeches,wiki")
    parser.add_argument("--tokens", default="2048,8192,32768")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("results/quality/mixtures_natural.json"))
    arguments = parser.parse_args()
    bench = Bench(arguments.model, arguments.natural, arguments.kinds.split(","), arguments.sparsity)
    rows: list[dict[str, Any]] = []
    for seed, tokens in itertools.product(range(arguments.seeds), map(int, arguments.tokens.split(","))):
        found, hashes = bench.calibrate(tokens, seed)
        about = {"seed": seed, "tokens": tokens, "data_hash": hashes}
        rows += [about | row for row in shares(bench, found, seed)]
        if tokens == max(map(int, arguments.tokens.split(","))):
            rows += [about | row for row in pairs(bench, found, seed)]
        write_json(arguments.out, {"kind": "mixtures", "sparsity": arguments.sparsity, "rows": rows} | provenance())
    show(rows)


def shares(bench: Bench, found: dict[str, Statistics], seed: int) -> list[dict[str, Any]]:
    """A task's own text with more and more of all other kinds beside it."""
    rows = []
    for kind, share in tqdm(list(itertools.product(bench.kinds, SHARES)), desc="shares"):
        others = merge([part for name, part in found.items() if name != kind])
        losses, chosen, sparsity = bench.added_loss({kind: found[kind]}, seed, others, mix=share)
        row = {"about": "share", "kind": kind, "share": share, "chosen": chosen, "added_loss": losses[kind]}
        rows.append(row | {"realised_sparsity": sparsity})
    return rows


def pairs(bench: Bench, found: dict[str, Statistics], seed: int) -> list[dict[str, Any]]:
    """One network for two tasks: each counted equally, or weighed for the one that loses most."""
    rows = []
    for first, second in tqdm(list(itertools.combinations(bench.kinds, 2)), desc="pairs"):
        both = {first: found[first], second: found[second]}
        for worst in (False, True):
            losses, weights, sparsity = bench.added_loss(both, seed, None, mask="general", worst_task=worst)
            row = {"about": "pair", "kinds": [first, second], "worst_task": worst, "weights": weights}
            rows.append(row | {"added_loss": losses, "realised_sparsity": sparsity})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    found = defaultdict(list)
    for row in rows:
        if row["about"] == "share":
            found[f"{row['tokens']:>6} tokens, share {row['share']}"].append(row["added_loss"])
        else:
            name = "pairs, weighed for the worst" if row["worst_task"] else "pairs, equal weights"
            found[f"{name}: the worse of the two"].append(max(row["added_loss"].values()))
            found[f"{name}: their mean"].append(statistics.fmean(row["added_loss"].values()))
    for name, values in found.items():
        print(f"{statistics.fmean(values):8.4f}  {name}")


if __name__ == "__main__":
    main()
