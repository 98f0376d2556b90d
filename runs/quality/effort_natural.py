"""What --effort costs and keeps: added loss and processor seconds of each, beside measured damage curves.

    python runs/quality/effort_natural.py MODEL NATURAL [--kinds code,gsm8k] [--seeds 1] [--tokens 16384] [--out FILE]
    python runs/quality/effort_natural.py MODEL TASKS --kinds arc_easy --seeds 1 --tokens 16384 --items 200 --out FILE

Seconds are of the processor (all threads), without calibration, which is the same for all.
"""

import argparse
import statistics
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from natural import TESTING, Measured, calibration

from seap.environment import provenance
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import prune

VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard, twice the Fisher text": {"fisher_tokens": 8192},
    "quick": {"effort": "quick"},
    "standard, curves measured, 60 trials": {"curves": "measured", "search_evaluations": 60},
    "thorough": {"effort": "thorough"},
}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The means of each variant over kinds and draws."""
    found = {}
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        if own:
            names = ("added_loss", "cpu_seconds")
            found[name] = {key: statistics.fmean(row[key] for row in own) for key in names} | {"networks": len(own)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("natural", type=Path)
    parser.add_argument("--kinds", default="boolq,code,gsm8k,piqa,reviews,science,speeches,wiki")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--items", type=int, default=TESTING.num_items, help="of the test")
    parser.add_argument("--variants", default="", help="Some of them, separated by ;")
    parser.add_argument("--out", type=Path, default=Path("results/quality/effort_natural.json"))
    given = parser.parse_args()
    dense, tokenizer = loader.load(given.model, dtype="float32", device="cpu")
    rows: list[dict[str, Any]] = []
    chosen = given.variants.split(";") if given.variants else list(VARIANTS)
    for seed in range(given.seeds):
        for kind in given.kinds.split(","):
            text = calibration(given.tokens, seed)
            data = Measured.of(kind, given.natural / kind, dense, tokenizer, text, given.items)
            for name in chosen:
                pruned, started = deepcopy(dense), time.process_time()
                report = prune(
                    pruned,
                    statistics=data.statistics,
                    sparsity=given.sparsity,
                    seed=seed,
                    progress=False,
                    **VARIANTS[name],
                )
                spent = time.process_time() - started
                rows.append(data.row(pruned, report.realised_sparsity, variant=name, seed=seed, cpu_seconds=spent))
                about = {"sparsity": given.sparsity, "tokens": given.tokens, "means": summary(rows), "rows": rows}
                hashes = {"data_hash": digest([row["data_hash"] for row in rows])}
                write_json(given.out, {"kind": "effort"} | about | hashes | provenance())
                print(f"{kind} {seed} {name}: added loss {rows[-1]['added_loss']:.4f}, {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
