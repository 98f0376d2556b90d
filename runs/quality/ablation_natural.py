"""What each part of the default method is worth on natural-7m: added loss with one part changed at a time.

    python runs/quality/ablation_natural.py MODEL NATURAL [--kinds code,gsm8k] [--seeds 1] [--tokens 32768] [--out FILE]

Every variant sees the same text, at equal realised sparsity; one calibration serves all of them.
"""

import argparse
import statistics
from copy import deepcopy
from pathlib import Path
from typing import Any

from natural import Measured, calibration
from tqdm import tqdm

from seap.environment import provenance
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import prune

VARIANTS: dict[str, dict[str, Any]] = {
    "seap": {},
    "score obs, without the loss's sensitivity": {"score": "obs"},
    "damage alone, no search": {"allocate": "damage"},
    "logistic widths": {"allocate": "logistic"},
    "no refit": {"sequential": False},
    "bias in place of ridge": {"compensate": "bias", "sequential": False},
    "seap-paper": {"method": "seap-paper"},
}


def measure(kind: str, folder: Path, dense: Any, tokenizer: Any, seed: int, tokens: int, sparsity: float) -> list[Any]:
    """A row for every variant on one kind of text and one draw of it."""
    measured, rows = Measured.of(kind, folder, dense, tokenizer, calibration(tokens, seed)), []
    for name, changes in tqdm(VARIANTS.items(), desc=f"{kind} {seed}", leave=False):
        pruned = deepcopy(dense)
        report = prune(pruned, statistics=measured.statistics, sparsity=sparsity, seed=seed, progress=False, **changes)
        about = {"variant": name, "seed": seed, "seconds": report.seconds}
        rows.append(measured.row(pruned, report.realised_sparsity, **about))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("natural", type=Path)
    parser.add_argument("--kinds", default="boolq,code,gsm8k,piqa,reviews,science,speeches,wiki")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("results/quality/ablation_natural.json"))
    arguments = parser.parse_args()
    dense, tokenizer = loader.load(arguments.model, dtype="float32", device="cpu")
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for kind in arguments.kinds.split(","):
            folder = arguments.natural / kind
            rows += measure(kind, folder, dense, tokenizer, seed, arguments.tokens, arguments.sparsity)
            means = {
                name: statistics.fmean(row["added_loss"] for row in rows if row["variant"] == name) for name in VARIANTS
            }
            about = {"sparsity": arguments.sparsity, "data_hash": digest([row["data_hash"] for row in rows])}
            write_json(
                arguments.out, {"kind": "ablation", "mean_added_loss": means, "rows": rows} | about | provenance()
            )
    for name, value in sorted(means.items(), key=lambda pair: pair[1]):
        print(f"{value:8.4f}  {name}")


if __name__ == "__main__":
    main()
