"""The vocabulary chosen together with the layers: by brute force over sizes and widths, and through `seap.prune`."""

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import model
from vocabularies import TEXTS, byte_level

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.models.sizes import saved_bytes
from seap.pruning import jointly
from seap.selection import footprint as footprints
from seap.selection.allocate import grid
from seap.selection.options import Pruning
from seap.selection.timing import TimeCurve, Times
from seap.text.items import Item
from seap.text.options import Calibration
from seap.vocabulary import choosing, counts, measuring
from seap.vocabulary.described import describe_tokenizer
from seap.vocabulary.embedding import cut_embeddings_
from seap.vocabulary.rewriting import Source

LINES = [line for text in dict.fromkeys(TEXTS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
PLAIN = [line for line in LINES if line.isascii()]
NARROW = {"toy": [f"{a} {b} {c}" for a in PLAIN for b in PLAIN[:4] for c in PLAIN[:3]]}
WIDE = {"toy": [f"{a} {b}" for a in LINES for b in LINES[:4]]}
READING = Calibration()
SMALL: dict[str, Any] = {"min_channels": 2, "progress": False, "effort": "quick"}
SIZES = [264, 290, 305, 320, 335, 365, 379]


def pair(**changes: Any) -> tuple[Any, Any]:
    """A tiny model whose layers say much, and its tokenizer."""
    words = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    net = model("llama", vocab_size=len(words), max_position_embeddings=256, hidden_size=32, **changes)
    with torch.no_grad():
        for layer in net.model.layers:
            layer.mlp.down_proj.weight *= 8
            layer.self_attn.o_proj.weight *= 8
    return net, words


def trial_on(net: Any, words: Any) -> tuple[measuring.Trial, float]:
    items, described = [Item(text=text) for text in NARROW["toy"]], describe_tokenizer(words)
    seen = counts.count(words, {"toy": items}, READING)
    order, _ = choosing.words_of(net, words, described, seen, Counter()).order(seen.seen)
    made = measuring.Trial(net, Source(words, described), order, SIZES, seen.held, READING, False)
    return made, seen.tokens_per_byte()


@torch.no_grad()
def lost_by_hand(net: Any, words: Any, trial: measuring.Trial, size: int) -> float:
    """Nats per byte that the held-out texts lose with so many tokens, one text after the other."""
    kept, cut = sorted(trial.order[:size]), copy.deepcopy(net)
    cut_embeddings_(cut, kept)
    total = 0.0
    for sign, (which, reads) in {1: (cut, trial.source.smaller(kept)), -1: (net, words)}.items():
        for text in trial.held:
            row = torch.tensor(counts.row_of(reads, text.item, READING))
            logits = which(row[None, :-1]).logits[0].double()
            total += sign * float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return total / sum(len(text.item.text.encode()) for text in trial.held)


def least_by_brute_force(layers: jointly.Layers, size: int) -> float:
    """The least sum of the axes' damage among all widths that fit beside so many tokens; inf where none do."""
    whole, ranking = layers.footprint, layers.ranking
    taken, damage = np.zeros(1), np.zeros(1)
    for axis in ranking.free:
        widths = grid(axis, layers.options)
        takes, costs = (np.array(one[axis.key].at(widths)) for one in (whole.curves, ranking.curves or {}))
        taken, damage = (np.add.outer(a, b).ravel() for a, b in ((taken, takes), (damage, costs - costs.min())))
    there = whole.fixed + whole.output * size / layers.num_tokens + taken
    fits = there <= whole.most(layers.options.sparsity)
    return float(damage[fits].min()) if fits.any() else math.inf


@pytest.mark.parametrize(("sparsity", "compensate"), [(0.1, None), (0.3, "none"), (0.4, None)])
def test_it_is_the_least_sum_of_all_sizes_and_widths(
    sparsity: float, compensate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, words = pair(num_hidden_layers=2)
    options = Pruning(
        cost="memory", context=32, sparsity=sparsity, compensate=compensate, min_channels=2, effort="quick"
    )
    seen = footprints.footprint_of(net, options)
    trial, per_byte = trial_on(net, words)
    layers = jointly.looked_at(net, words, NARROW, options, seen, READING, progress=False)
    curves = layers.ranking.curves
    assert curves is not None

    def predicted(judge: Any, axes: Any, budgets: Any, repair_to: Any) -> float:
        costs = [curves[axis.key].at([budgets[axis.key], *grid(axis, options)]) for axis in axes]
        return sum(own - min(rest) for own, *rest in costs)

    monkeypatch.setattr(jointly, "divergence_of", predicted)
    sums = {}
    for size in SIZES:
        sums[size] = least_by_brute_force(layers, size) * per_byte + lost_by_hand(net, words, trial, size)
    assert len(words) == max(SIZES) and len({size for size in SIZES if math.isfinite(sums[size])}) > 2
    best, told = jointly.choose_together(lambda: layers, trial, per_byte)
    assert sums[best] == pytest.approx(min(sums.values()), rel=2e-3, abs=1e-7)
    for one in told["tried"]:
        assert one.get("sum", math.inf) == pytest.approx(sums[one["tokens"]], rel=2e-3, abs=1e-7)
    assert told["together_with"] == f"--sparsity {sparsity} with --cost memory"


def test_what_the_layers_lose_is_what_a_model_cut_to_those_widths_loses() -> None:
    """KL by hand of a copy that is really cut, on the rows that the look measured on."""
    from seap.pruning.surgery import cut_
    from seap.selection.mask import choose_units
    from seap.selection.search import divergence_of

    net, words = pair(num_hidden_layers=2)
    options = Pruning(cost="memory", context=32, sparsity=0.3, compensate="none", min_channels=2, effort="quick")
    layers = jointly.looked_at(
        net, words, NARROW, options, footprints.footprint_of(net, options), READING, progress=False
    )
    kept: list[dict[str, int]] = []
    original = divergence_of

    def noted(judge: Any, axes: Any, budgets: Any, repair_to: Any) -> float:
        kept.append(budgets)
        return original(judge, axes, budgets, repair_to)

    jointly.divergence_of, found = noted, None  # type: ignore[attr-defined]
    try:
        found = layers.beside(320)
    finally:
        jointly.divergence_of = original  # type: ignore[attr-defined]
    cut, judge = copy.deepcopy(net), layers.ranking.judge
    cut_(cut, choose_units(layers.ranking.arch.axes, layers.ranking.scores, kept[0]), {})
    total = count = 0.0
    assert judge is not None
    with torch.no_grad():
        for batch in judge.walk.batches:
            given = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
            dense, pruned = (one(**given).logits.double().log_softmax(-1) for one in (net, cut))
            total += float(((dense.exp() * (dense - pruned)).sum(-1) * batch.counted).sum())
            count += int(batch.counted.sum())
    assert found.damage == pytest.approx(total / count, rel=1e-4) and found.damage > 0.001
    gone = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in cut.parameters())
    assert found.gone == pytest.approx(gone / layers.ranking.arch.prunable_params)


def test_the_least_of_many_sizes_in_a_few_steps() -> None:
    sizes = list(range(100, 3100, 100))
    for best in (100, 200, 1500, 1700, 2900, 3000):
        tried: list[int] = []

        def total(size: int, best: int = best, tried: list[int] = tried) -> float:
            tried.append(size)
            return math.inf if size > 2950 and best < 2950 else abs(size - best) ** 1.5

        assert jointly.least(sizes, total) == best
        assert len(tried) == len(set(tried)) <= 14
        tried.clear()
        looked: list[int] = []
        found = jointly.least(
            sizes, total, lambda size, best=best, looked=looked: (looked.append(size), abs(size - best))[1]
        )
        assert found == best and len(tried) == len(set(tried)) <= 7 and len(looked) <= 9
    assert jointly.least([7], lambda size: math.inf) == 7
    assert jointly.least([7, 8, 9], lambda size: 1.0) == 9  # nothing goes that needn't
    assert jointly.least([7, 8, 9], lambda size: -size, lambda size: size) == 9  # of a few all are measured


def by_parameters(arch: Any, *, context: int, batch: int) -> tuple[Times, float]:
    return {axis.key: TimeCurve((axis.units,), (axis.params / 1000,)) for axis in arch.axes}, 0.4


@pytest.mark.parametrize(
    "options",
    [
        {"target_size": 0.7},
        {"target_size": 0.7, "heads": "query"},
        {"target_size": 0.7, "drop": "both", "save_dtype": "bfloat16"},
        {"cost": "bytes", "sparsity": 0.3},
        {"cost": "memory", "context": 64, "sparsity": 0.3},
        {"target_speed": "1.4x"},
    ],
)
def test_what_is_asked_is_met_with_the_vocabulary_that_was_chosen(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprints, "token_times", by_parameters)
    monkeypatch.setattr(
        footprints, "output_milliseconds", lambda net, batch: net.get_output_embeddings().weight.numel() / 1000
    )
    net, words = pair()
    dtype = torch.bfloat16 if "save_dtype" in options else torch.float32
    whole = saved_bytes(net, dtype)
    asked = options | ({"target_size": options["target_size"] * whole} if "target_size" in options else {})
    report = seap.prune(net, words, task=NARROW, vocabulary="auto", **(SMALL | asked))
    told, target = report.vocabulary, report.target
    assert told is not None and target is not None
    assert target["after"] <= target["most"] and report.realised_sparsity > 0
    assert told["tokens_after"] == len(words) == net.config.vocab_size < told["tokens_before"]
    own = next(one for one in told["tried"] if one["tokens"] == told["tokens_after"])
    assert own["sum"] == min(one["sum"] for one in told["tried"] if "sum" in one)
    assert own["layers_sparsity"] == pytest.approx(report.realised_sparsity, abs=0.05)
    assert "chosen with the layers" in repr(report) and "tolerance" not in told
    if target["cost"] == "bytes":
        net.to(dtype).save_pretrained(tmp_path)
        size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        assert 0.6 * whole < size <= 0.7 * whole


def test_where_words_are_dear_the_layers_give_and_the_vocabulary_stays() -> None:
    net, words = pair()
    report = seap.prune(net, words, task=WIDE, vocabulary="auto", target_size=0.75 * saved_bytes(net), **SMALL)
    assert report.vocabulary is not None and report.vocabulary["tokens_after"] == 379 == len(words)
    assert "the whole vocabulary stays: less is lost in the layers" in report.notes


def test_what_can_not_be_met_by_both_is_refused_with_the_nearest_and_nothing_changes() -> None:
    net, words = pair()
    least = seap.prune(*pair(), task=NARROW, vocabulary=256 + 3, sparsity=0, **SMALL)
    embeddings = least.vocabulary["params_after"] if least.vocabulary else 0
    most = 4 * (embeddings + 600)  # the least widths take more
    with pytest.raises(UserError, match=r"--target-size .* can't be met: of the bytes .* at least .* stays"):
        seap.prune(net, words, task=NARROW, vocabulary="auto", target_size=most, **SMALL)
    assert net.config.vocab_size == len(words) == 379


def test_methods_without_damage_keep_to_the_tolerance_and_say_so() -> None:
    net, words = pair()
    how: dict[str, Any] = SMALL | {"method": "flap", "vocabulary_tolerance": 0.5, "target_size": 0.7 * saved_bytes(net)}
    report = seap.prune(net, words, task=NARROW, vocabulary="auto", **how)
    assert report.vocabulary is not None and report.vocabulary["tolerance"] == 0.5
    assert any("--allocate adaptive measures no damage" in note for note in report.notes)
    assert report.target is not None and report.target["after"] <= report.target["most"]
    net, words = pair()
    how = SMALL | {"vocabulary_tolerance": 0.5, "target_size": 0.7 * saved_bytes(net)}
    report = seap.prune(net, words, task=NARROW, vocabulary="auto", **how)
    assert any("--vocabulary-tolerance has no effect" in note for note in report.notes)


def test_the_command_and_its_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, words = pair()
    for part in (net, words):
        part.save_pretrained(tmp_path / "dense")
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in NARROW["toy"]))
    most = round(0.7 * saved_bytes(net))
    given = ["prune", str(tmp_path / "dense"), "--task", f"toy={tmp_path / 'toy.jsonl'}", "--target-size", str(most)]
    given += ["--vocabulary", "auto", "--effort", "quick", "--min-channels", "2", "--out", str(tmp_path / "small")]
    assert main([*given, "--plan", "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert main([*given[:-4], "--method", "flap", *given[-2:], "--plan", "--json"]) == 0
    alone = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["vocabulary"]["forward"] > alone["vocabulary"]["forward"]
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["vocabulary"]
    assert told["together_with"].startswith("--target-size") and len(told["tried"]) > 1
    assert sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors")) <= most
    assert main(["inspect", str(tmp_path / "small")]) == 0
    assert "chosen with the layers" in " ".join(capsys.readouterr().out.split())
