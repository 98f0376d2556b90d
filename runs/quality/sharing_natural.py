"""What sharing costs on natural-7m: added loss against the share of the dense parameters that a network owns.

    python runs/quality/sharing_natural.py MODEL NATURAL [--kinds code,gsm8k] [--tokens 65536] [--out FILE]

One network per kind of text with the default method (half removed); then its reconstruction as corrections of low rank
within a share, and what reconstruction changed left out but for the biases. `seap-paper` and `flap` on the same text
stand beside it. Last, all kinds in one task runtime: what each adds to the memory, masks sliced or packed.
"""

import argparse
import statistics
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from natural import Measured, calibration
from tqdm import tqdm

from seap.environment import provenance
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import prune
from seap.serving.networks.network import Network, network_between
from seap.serving.networks.runtime import TaskRuntime
from seap.serving.networks.sharing import share_weights

SHARES = (0.01, 0.025, 0.05, 0.1)
SERVED = 0.025  # the share of the networks whose memory is measured


def measure(
    kind: str, folder: Path, dense: Any, tokenizer: Any, tokens: int, sparsity: float
) -> tuple[list[Any], dict[float | None, Network]]:
    """Rows of one kind, and its networks by share (None: all of reconstruction)."""
    options = calibration(tokens)
    measured = Measured.of(kind, folder, dense, tokenizer, options)
    rows = []
    for method in ("seap-paper", "flap"):
        pruned = deepcopy(dense)
        report = prune(pruned, statistics=measured.statistics, method=method, sparsity=sparsity, progress=False)
        rows.append(measured.row(pruned, report.realised_sparsity, what=method, own_share=None))
    pruned = deepcopy(dense)
    report = prune(pruned, statistics=measured.statistics, sparsity=sparsity, progress=False)
    size = sum(p.numel() for p in dense.parameters())
    whole = network_between(dense, pruned, report.masks)
    networks: dict[float | None, Network] = {None: whole}
    named = {"seap": whole, "seap, biases alone": replace(whole, weights={})}
    for share in SHARES:
        own: dict[str, Any] = {"share": share, "batch_tokens": options.batch_tokens, "progress": False}
        networks[share] = share_weights(dense, pruned, whole, measured.corpus.rows, **own)
        named[f"seap, share {share:g}"] = networks[share]
    for name, network in named.items():
        with TaskRuntime(deepcopy(dense), {kind: network}, min_slice_bytes=0).task(kind) as model:
            rows.append(measured.row(model, report.realised_sparsity, what=name, own_share=network.num_own / size))
    return rows, networks


def memory(dense: Any, networks: dict[str, Network], label: str) -> list[dict[str, Any]]:
    """What each network adds to the dense model's bytes, all of them in one runtime."""
    size, rows = sum(p.numel() * p.element_size() for p in dense.parameters()), []
    for least in (0, 256 << 10):
        runtime = TaskRuntime(deepcopy(dense), networks, min_slice_bytes=least)
        slices = [len(piece.bounds) for pieces in runtime.pieces.values() for piece in pieces]
        added = [own / size for own in runtime.bytes.values()]
        about = {"what": label, "tasks": len(networks), "min_slice_bytes": least}
        rows.append(about | {"added_per_task": statistics.fmean(added), "most_added": max(added)})
        rows[-1]["mean_slices"] = statistics.fmean(slices)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("natural", type=Path)
    parser.add_argument("--kinds", default="boolq,code,gsm8k,piqa,reviews,science,speeches,wiki")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("results/quality/sharing_natural.json"))
    arguments = parser.parse_args()
    dense, tokenizer = loader.load(arguments.model, dtype="float32", device="cpu")
    rows: list[dict[str, Any]] = []
    kept: dict[float | None, dict[str, Network]] = {None: {}, SERVED: {}}
    for kind in tqdm(arguments.kinds.split(",")):
        folder = arguments.natural / kind
        made, networks = measure(kind, folder, dense, tokenizer, arguments.tokens, arguments.sparsity)
        rows += made
        for share, own in kept.items():
            own[kind] = networks[share]
        names = dict.fromkeys(row["what"] for row in rows)
        means = {name: statistics.fmean(row["added_loss"] for row in rows if row["what"] == name) for name in names}
        about = {"kind": "sharing", "sparsity": arguments.sparsity, "mean_added_loss": means, "rows": rows}
        found = [part for share, own in kept.items() for part in memory(dense, own, f"share {share or 'all'}")]
        about |= {"memory": found, "data_hash": digest([row["data_hash"] for row in rows])}
        write_json(arguments.out, about | provenance())
    for name, value in sorted(means.items(), key=lambda pair: pair[1]):
        print(f"{value:8.4f}  {name}")


if __name__ == "__main__":
    main()
