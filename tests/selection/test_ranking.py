"""The whole default method: one ranking, many sparsities, search and refit."""

from typing import Any

import pytest
import torch
from tiny import ids, model
from toy import TEXTS, tokenizer

import seap
from seap.activations.calibration import calibrate
from seap.models.arch import describe
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import build_corpus
from seap.text.options import Calibration


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_the_whole_method_on_families_that_differ(name: str) -> None:
    dense = model(name)
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.2, min_channels=4, progress=False)
    assert report.realised_sparsity == pytest.approx(0.2, abs=0.03)
    assert torch.isfinite(dense(ids()).logits).all()


def test_one_ranking_serves_many_sparsities_and_search_keeps_the_budget() -> None:
    dense: Any = model("llama")
    data = build_corpus("toy", TEXTS, tokenizer(), Calibration(), source="test", seq_len=64)
    statistics = {"toy": calibrate(dense, data, Calibration(second_moments=True), progress=False)}
    ranking = rank(dense, statistics, Pruning(min_channels=4, search_evaluations=20))
    arch = describe(dense)
    unit = max(axis.unit_params for axis in arch.axes if axis.name == "channels")
    for sparsity in (0.2, 0.5):
        masks = ranking.masks(sparsity)
        removed = sum(int((~masks[a.key]).sum()) * a.unit_params for a in arch.axes)
        assert abs(removed - sparsity * arch.prunable_params) <= unit


def test_the_whole_method_in_blocks() -> None:
    dense = model("llama")
    report = seap.prune(
        dense, tokenizer(), task={"toy": TEXTS}, sparsity=0.3, min_channels=4, moments="block:16", progress=False
    )
    assert report.realised_sparsity == pytest.approx(0.3, abs=0.03)
    assert torch.isfinite(dense(ids()).logits).all()
