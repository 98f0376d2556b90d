"""Whether whole sub-blocks pay: KL on unseen text at the same sparsity, with and without `--drop`, one ranking for all.

    python runs/quality/whole_blocks.py MODEL arc_easy=TASKS/arc_easy --texts 100 --sparsity 0.5 --out FILE

Units are ranked and damage is known in closed form (`--effort quick`); networks are simulated with repairs of one
damping, before any refit. KL is from the dense model, per token of the task's test part; so is the added loss.
`query_heads.py` does the same for `--heads`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from seap.activations.layerwise import Walk
from seap.environment import provenance
from seap.errors import UserError
from seap.files import write_json
from seap.methods import Drop
from seap.models import loader
from seap.models.arch import Arch
from seap.models.modes import evaluation
from seap.pruning.damage import Dense
from seap.pruning.prune import build_corpora, calibrate_corpora
from seap.selection.allocate import allocate
from seap.selection.damage import simulated_all
from seap.selection.mask import choose_units, realised_sparsity
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.text.corpus import build_corpus, longest_sequence
from seap.text.options import Calibration
from seap.text.tasks import load_items, parse_spec


def rows_of(ranking: Ranking, dense: Dense, sparsities: Sequence[float], option: str, values: Sequence[str]) -> Any:
    """KL and added loss at each sparsity with each value of an option, and the widths chosen."""
    rows = []
    for sparsity in sparsities:
        for value in values:
            asked: dict[str, Any] = {"sparsity": sparsity, option: value}
            try:
                found = measured(ranking, dense, replace(ranking.options, **asked))
            except UserError as error:  # beyond what these can give
                found = {"refused": str(error)}
            rows.append(asked | found)
            print(rows[-1], flush=True)
    return rows


def measured(ranking: Ranking, dense: Dense, options: Pruning) -> dict[str, Any]:
    """What a network of these options loses, simulated."""
    assert ranking.repair_to is not None
    arch = ranking.arch
    budgets = allocate(arch, options, ranking.scores, ranking.curves)
    shaped = [axis.shaped(budgets) for axis in arch.axes]
    axes = [axis for axis in shaped if budgets[axis.key] < axis.units or axis.heads < axis.queries]
    cut = {axis.key: ranking.repair_to(axis, budgets[axis.key]) for axis in axes}
    repairs = {key: repair for key, (_, repair) in cut.items() if repair is not None}
    keep = {key: keep for key, (keep, _) in cut.items()}
    with evaluation(arch.model), simulated_all(arch, axes, keep, repairs):
        found = dense.damage_to(arch.model)
    assert found is not None
    realised = realised_sparsity(arch, choose_units(arch.axes, ranking.scores, budgets))
    told = {"realised": realised, "kl": found["kl"], "added_loss": found["loss_after"] - found["loss_before"]}
    kept = {key: count for key, count in budgets.items() if not key.endswith("channels")}
    return told | {"gone": [key for key, count in budgets.items() if not count], "kept": kept}


def arguments(told: str | None) -> Any:
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("task", help="NAME=PATH")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--tests", type=int, default=60)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5])
    parser.add_argument("--min-channels", type=int, default=Pruning.min_channels)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def compare(given: Any, kind: str, option: str, values: Sequence[str], most: str) -> None:
    """One ranking with the value that allows most, networks with each, written to a file."""
    model, tokenizer = loader.load(given.model, dtype="float32", device="cpu")
    calibration = Calibration(num_texts=given.texts, second_moments=True)
    corpora = build_corpora(model, tokenizer, [given.task], calibration)
    statistics = calibrate_corpora(model, corpora, calibration, progress=False)
    widest: dict[str, Any] = {option: most, "min_channels": given.min_channels}
    ranking = rank(model, statistics, Pruning(effort="quick", **widest))
    spec, test = parse_spec(given.task), Calibration(num_texts=given.tests)
    seq_len = longest_sequence(model, test)
    unseen = build_corpus(spec.name, load_items(spec, "test"), tokenizer, test, source="test", seq_len=seq_len)
    rows = rows_of(ranking, dense_on(ranking.arch, unseen.rows), given.sparsity, option, values)
    if given.out:
        told = {"model": Path(given.model).name, "task": spec.name, "min_channels": given.min_channels, "rows": rows}
        told |= {"calibration": corpora[spec.name].data_hash, "test": unseen.data_hash, "tests": len(unseen.rows)}
        told |= {"test_tokens": unseen.num_tokens}
        write_json(given.out, {"kind": kind} | told | provenance())


def dense_on(arch: Arch, rows: Sequence[Sequence[int]]) -> Dense:
    with evaluation(arch.model):
        walk = Walk.start(arch, rows, batch_tokens=Calibration.batch_tokens, apart=False)
        for layer in range(len(arch.layers)):
            walk.hidden = [walk.run(layer, index) for index in range(len(walk.batches))]
    return Dense(walk, walk.hidden, "test text")


if __name__ == "__main__":
    compare(arguments(__doc__), "whole_blocks", "drop", get_args(Drop), "both")
