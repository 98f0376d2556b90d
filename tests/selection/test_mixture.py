"""Mixtures of texts: moments by hand, shares and weights chosen on held-out text, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model
from toy import TEXTS, WORDS, folder, texts_file, tokenizer

import seap
from seap.activations.calibration import calibrate
from seap.activations.moments import Moments
from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.pruning.commands import prune_to_folder
from seap.pruning.stages import calibrate_to_files, mask_to_file
from seap.scoring.score import score_inputs
from seap.selection.mixture import QuickNetworks, add_general, choose_weights, pool
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import Corpus, build_corpus
from seap.text.options import Calibration

CHEAP: dict[str, Any] = {"min_channels": 4, "search_evaluations": 2, "probe_tokens": 64, "fisher_tokens": 64}
SECOND = Calibration(second_moments=True)


def corpus(name: str, words: list[str], num_rows: int = 15) -> Corpus:
    texts = [" ".join(words[(i * 5 + j * (i + 2)) % len(words)] for j in range(9)) for i in range(num_rows)]
    return build_corpus(name, texts, tokenizer(), Calibration(), source="test", seq_len=64)


def statistics(dense: Any, **words: list[str]) -> dict[str, Statistics]:
    return {name: calibrate(dense, corpus(name, own), SECOND, progress=False) for name, own in words.items()}


def assert_same(first: Moments, second: Moments) -> None:
    assert first.count == second.count and first.co is not None and second.co is not None
    for one, other in ((first.mean, second.mean), (first.m2, second.m2), (first.co, second.co)):
        torch.testing.assert_close(one, other)


def test_weighted_moments_are_those_of_rows_seen_so_often() -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert_same(Moments.of(rows, second=True).weighted(3), Moments.of(rows.repeat(3, 1), second=True))


def test_a_share_of_general_text_counts_as_that_many_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(12, 3, generator=generator), torch.randn(6, 3, generator=generator) + 2
    task = Statistics({"a": Moments.of(own, second=True)}, ((1, 2),))
    general = Statistics({"a": Moments.of(other, second=True)}, ((3, 4),))
    mixed = add_general(task, general, 1.0)
    assert_same(mixed["a"], Moments.of(torch.cat([own, other, other]), second=True))
    assert mixed.rows == task.rows and task["a"].count == 12
    assert add_general(task, general, 0.0) is task


def test_pooled_tasks_count_equally_in_a_general_mask_and_by_tokens_otherwise() -> None:
    first, second = torch.ones(4, 2), 5 * torch.ones(12, 2)
    parts = {"a": Statistics({"x": Moments.of(first)}), "b": Statistics({"x": Moments.of(second)})}
    general = pool(parts, Pruning(method="seap-all"))["x"]
    torch.testing.assert_close(general.mean, torch.full((2,), 3.0, dtype=torch.float64))
    assert general.count == 16
    weighted = pool(parts, Pruning(method="seap-all", weights={"b": 3.0}))["x"]
    torch.testing.assert_close(weighted.mean, torch.full((2,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(pool(parts, Pruning(method="flap"))["x"].mean, torch.full((2,), 4.0).double())
    assert pool({"a": parts["a"]}, Pruning()) is parts["a"]


def test_no_share_changes_nothing_and_a_large_one_scores_by_the_general_text() -> None:
    dense = model("llama")
    made = statistics(dense, own=WORDS[:20], other=WORDS[50:])
    options = Pruning(method="seap-paper", sparsity=0.4, min_channels=4)
    plain = rank(dense, {"own": made["own"]}, options)
    none = rank(dense, {"own": made["own"]}, replace(options, mix=0.0), general=made["other"])
    much = rank(dense, {"own": made["own"]}, replace(options, mix=1e6), general=made["other"])
    expected = score_inputs(plain.arch, made["other"], "wifv")
    for key, score in plain.scores.items():
        assert torch.equal(score, none.scores[key])
        torch.testing.assert_close(much.scores[key], expected[key], rtol=0.01, atol=1e-6)  # variances by n and by n - 1


@pytest.mark.parametrize("method", ["seap-gen", "seap-all"])
def test_weights_for_the_worst_task_are_never_worse_for_it_than_equal_ones(method: str) -> None:
    dense = model("llama", num_hidden_layers=4)
    made = statistics(dense, a=WORDS[:12], b=WORDS[12:24], c=WORDS[60:])
    options = Pruning(method=method, sparsity=0.5, **CHEAP)

    def make_masks(parts: Any, quick: Pruning) -> Any:
        return rank(dense, parts, quick).masks(quick.sparsity)

    networks = QuickNetworks.on(dense, made, options, make_masks, 0)
    equal = networks.divergences(made)
    weights, note = choose_weights(networks, made)
    chosen = networks.divergences(made, weights=weights)
    assert max(chosen.values()) <= max(equal.values()) and "worst KL" in note
    assert weights.keys() == made.keys() and all(weight > 0 for weight in weights.values())
    # a task whose weight is nearly all of it loses less than with nearly none
    alone, never = (networks.divergences(made, weights=dict.fromkeys("bc", 1.0) | {"a": w})["a"] for w in (50, 0.02))
    assert alone < never


def test_the_whole_way() -> None:
    dense, tasks = model("llama"), {"a": TEXTS[:20], "b": TEXTS[20:]}
    report = seap.prune(
        dense, tokenizer(), task=tasks, method="seap-all", worst_task=True, sparsity=0.3, progress=False, **CHEAP
    )
    assert any(note.startswith("weights for the worst task: a ") for note in report.notes)
    assert set(report.provenance["options"]["weights"]) == {"a", "b"}
    assert report.realised_sparsity == pytest.approx(0.3, abs=0.03)


def test_the_share_is_chosen_and_told(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    general = f"more={texts_file(tmp_path / 'more.txt', TEXTS[::-1])}"
    quick = CHEAP | {"sparsity": 0.3, "progress": False, "loading": {"device": "cpu"}}
    report = prune_to_folder(dense, tmp_path / "out", tasks=[task], general=general, mix="auto", **quick)
    assert any(note.startswith("--mix ") and "held-out KL" in note for note in report.notes)
    loading = {"device": "cpu"}
    calibrate_to_files(dense, [task, general], tmp_path / "stats", SECOND, loading=loading, progress=False)
    toy, more = (tmp_path / "stats" / f"{name}.safetensors" for name in ("toy", "more"))
    about = mask_to_file(dense, [toy], tmp_path / "m", Pruning(mix=0.3, **CHEAP), general=more, loading=loading)
    assert about["options"]["mix"] == 0.3
    with pytest.raises(UserError, match=r"--mix 0\.3 needs general text"):
        mask_to_file(dense, [toy], tmp_path / "n", Pruning(mix=0.3, **CHEAP), loading=loading)
    with pytest.raises(UserError, match="--mix adds general text to one task's"):
        prune_to_folder("no/model", tmp_path / "x", tasks=[task, general], method="seap-all", mix=0.3)
    with pytest.raises(UserError, match="--worst-task weighs several tasks"):
        prune_to_folder(dense, tmp_path / "x", tasks=[task], method="seap-all", worst_task=True)


@pytest.mark.parametrize("mix", [-1, float("nan"), "some"])
def test_impossible_shares_are_refused(mix: Any) -> None:
    with pytest.raises(UserError, match="must be auto, or a number from 0 up"):
        Pruning(mix=mix)
