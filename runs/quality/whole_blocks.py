"""Whether whole sub-blocks pay: KL on unseen text at the same sparsity, with and without `--drop`, one ranking for all.

    python runs/quality/whole_blocks.py MODEL arc_easy=TASKS/arc_easy --texts 100 --sparsity 0.5 --out FILE

Units are ranked and damage is known in closed form (`--effort quick`); networks are simulated with repairs of one
damping, before any refit. KL is from the dense model, per token of the task's test part.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from seap.activations.layerwise import evaluation
from seap.environment import provenance
from seap.errors import UserError
from seap.files import write_json
from seap.models import loader
from seap.pruning.prune import build_corpora, calibrate_corpora
from seap.selection.allocate import allocate
from seap.selection.damage import Judge
from seap.selection.options import Drop, Pruning
from seap.selection.ranking import Ranking, rank
from seap.selection.search import divergence_of
from seap.text.corpus import build_corpus, longest_sequence
from seap.text.options import Calibration
from seap.text.tasks import load_items, parse_spec


def rows_of(ranking: Ranking, judge: Judge, sparsities: Sequence[float]) -> list[dict[str, Any]]:
    """KL of each sparsity and choice, and what went whole."""
    assert ranking.repair_to is not None
    arch, rows = ranking.arch, []
    for sparsity in sparsities:
        for drop in get_args(Drop):
            options = replace(ranking.options, sparsity=sparsity, drop=drop)
            try:
                budgets = allocate(arch, options, ranking.scores, ranking.curves)
            except UserError as error:  # beyond what units alone can give
                rows.append({"sparsity": sparsity, "drop": drop, "refused": str(error)})
                continue
            with evaluation(arch.model):
                found = divergence_of(judge, arch.axes, budgets, ranking.repair_to)
            gone = [key for key, count in budgets.items() if not count]
            rows.append({"sparsity": sparsity, "drop": drop, "kl": found, "gone": gone})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("task", help="NAME=PATH")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--tests", type=int, default=60)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5])
    parser.add_argument("--min-channels", type=int, default=Pruning.min_channels)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model, tokenizer = loader.load(given.model, dtype="float32", device="cpu")
    calibration = Calibration(num_texts=given.texts, second_moments=True)
    corpora = build_corpora(model, tokenizer, [given.task], calibration)
    statistics = calibrate_corpora(model, corpora, calibration, progress=False)
    options = Pruning(effort="quick", drop="both", min_channels=given.min_channels)
    ranking = rank(model, statistics, options)
    spec, test = parse_spec(given.task), Calibration(num_texts=given.tests)
    seq_len = longest_sequence(model, test)
    unseen = build_corpus(spec.name, load_items(spec, "test"), tokenizer, test, source="test", seq_len=seq_len)
    with torch.no_grad():
        judge = Judge.on(ranking.arch, unseen.rows, batch_tokens=Calibration.batch_tokens)
        rows = rows_of(ranking, judge, given.sparsity)
    if given.out:
        told = {"model": given.model, "task": spec.name, "min_channels": given.min_channels, "rows": rows}
        told |= {"calibration": corpora[spec.name].data_hash, "test": unseen.data_hash, "tests": len(unseen.rows)}
        write_json(given.out, {"kind": "whole_blocks"} | told | provenance())


if __name__ == "__main__":
    main()
