"""Pruning to a promise from end to end on a tiny model, and everything that is refused instead."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import toy
from toy import TEXTS, WORDS, folder, texts_file

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.evaluation.evaluate import evaluate, load_test, prepare
from seap.evaluation.options import Evaluation
from seap.evidence import promised
from seap.evidence.heldout import check_dense, damage, observe
from seap.evidence.options import Promise

SMALL = ["--min-channels", "4", "--device", "cpu"]


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(folder(tmp_path / "dense"))


@pytest.fixture
def task(tmp_path: Path) -> str:
    texts = [f"{text} {word} {WORDS[-1 - i]}" for text in TEXTS for i, word in enumerate(WORDS[:5])]
    return f"toy={texts_file(tmp_path / 'toy.txt', texts)}"  # 200 texts, 40 of them held out


def state(model: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_prune_to_a_promise(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = ["--method", "seap-paper", "--compensate", "bias"]  # the better default keeps this up to 70%
    out, words = tmp_path / "out", ["prune", dense, "--task", task, *SMALL, "--resolution", "0.1", *method]
    assert main([*words, "--min-agreement", "80%", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = json.loads((out / "seap.json").read_text())["promise"]
    assert found == report["promise"] and found["kind"] == "min_agreement" and found["bound"] == 0.2
    assert found["confidence"] == 0.95 and found["words"].startswith("at least 80% of tokens keep")
    [toy_found] = found["tasks"].values()
    assert toy_found["n"] == 40 and toy_found["estimate"] < toy_found["upper"] <= 0.2
    assert report["target_sparsity"] == found["sparsity"] and found["sparsity"] in (0.1, 0.2, 0.3, 0.4)
    assert report["realised_sparsity"] == found["realised_sparsity"] == pytest.approx(found["sparsity"], abs=0.01)
    assert report["corpora"]["toy"]["tokens"] == report["num_tokens"]
    assert {step["part"] for step in found["steps"]} <= {"bisection", "climb"}
    tried = {step["sparsity"] for step in found["steps"] if not step["kept"] and step["part"] == "climb"}
    assert tried == {round(found["sparsity"] + 0.1, 6)}
    assert main(["inspect", str(out)]) == 0
    assert "promised" in capsys.readouterr().out
    assert main([*words, "--max-loss", "20%", "--out", str(tmp_path / "out2")]) == 0
    told = capsys.readouterr().out
    assert "95% sure: on text like the 40 held-out texts of toy, the loss grows by at most 20%; there it is" in told
    assert "assumed: no text's loss grows by more than 2 times" in told


def test_what_was_promised_is_what_eval_measures(task: str) -> None:
    """On the same windows: the loss of `seap eval`, relative to the dense model's."""
    model, other = tiny.model(), tiny.model(seed=1)
    options = Evaluation(metric="loss")
    exam = prepare(load_test(task, options), model, toy.tokenizer(), options)
    before, after = observe(model, exam), observe(other, exam)
    from seap.evaluation.likeness import Reference

    row, base = evaluate(other, exam, reference=Reference(model)), evaluate(model, exam)
    assert damage("max_loss", exam, before, after).estimate == pytest.approx(row["loss"] / base["loss"] - 1, rel=1e-5)
    assert 1 - damage("min_agreement", exam, before, after).estimate == pytest.approx(row["agreement"], abs=1e-9)
    assert damage("min_agreement", exam, before, before).estimate == 0


def test_windows_of_one_text_count_as_one(tmp_path: Path) -> None:
    spec = f"long={texts_file(tmp_path / 'long.txt', [f'{text} {text} {text}' for text in TEXTS])}"
    options = Evaluation(metric="loss", window=5)
    exam = prepare(load_test(spec, options), tiny.model(), toy.tokenizer(), options)
    found = observe(tiny.model(), exam, ["max_loss"])
    assert len(exam.windows) > 20 and len(found.losses) == len(set(exam.owners)) == 8 and not found.right


def test_the_model_given_is_pruned_only_when_a_promise_is_found(task: str) -> None:
    model = tiny.model()
    before = state(model)
    options: dict[str, Any] = {"task": task, "progress": False, "min_channels": 4}
    with pytest.raises(UserError, match=r"no sparsity keeps this promise for task toy: at 0\.4, the least"):
        promise = Promise(resolution=0.4, max_sparsity=0.8)
        seap.prune_to_promise(model, toy.tokenizer(), min_agreement=0.9, promise=promise, **options)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    report = seap.prune_to_promise(model, toy.tokenizer(), max_loss=0.3, promise=Promise(resolution=0.2), **options)
    assert report.params_after < report.params_before == sum(v.numel() for v in before.values())
    with pytest.raises(UserError, match="leave out sparsity"):
        seap.prune_to_promise(model, toy.tokenizer(), max_loss=0.3, sparsity=0.5, **options)


@pytest.mark.parametrize("weigh", ["all", "answer", "generated"])
def test_a_promise_is_about_the_tokens_that_calibration_counts(weigh: Any, tmp_path: Path) -> None:
    """Without an evaluation of its own: the damage is that of the loss of those tokens, on held-out rows."""
    pairs = [(f"{text} {word}", text) for text in TEXTS for word in WORDS[:5]]
    rows = [{"prompt": prompt, "answer": answer, "generated": True} for prompt, answer in pairs]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec, dense, pruned, words = f"said={tmp_path / 'said.jsonl'}", tiny.model(), tiny.model(), toy.tokenizer()
    options: dict[str, Any] = {"task": spec, "progress": False, "min_channels": 4, "method": "wanda-sp", "weigh": weigh}
    found = seap.prune_to_promise(pruned, words, max_loss=0.9, promise=Promise(resolution=0.4), **options)
    told = found.provenance["promise"]
    assert told["evaluation"]["weigh"] == weigh
    settings = Evaluation(metric="loss", weigh=weigh)
    exam = prepare(load_test(spec, settings), dense, words, settings)
    losses = [evaluate(one, exam)["loss"] for one in (pruned, dense)]
    assert told["tasks"]["said"]["estimate"] == pytest.approx(losses[0] / losses[1] - 1, rel=1e-4)
    counted = exam.scored[0] / sum(len(window.ids) - window.start for window in exam.windows)
    assert (counted < 0.7) == (weigh != "all")


def test_accuracy_is_paired_item_by_item(tmp_path: Path) -> None:
    rows = [{"question": t, "choices": [WORDS[i], WORDS[i + 1]], "answer": i % 2} for i, t in enumerate(TEXTS)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = Evaluation()
    exam = prepare(load_test(f"asked={tmp_path / 'asked.jsonl'}", options), tiny.model(), toy.tokenizer(), options)
    before, after = (observe(tiny.model(seed=s), exam, ["max_acc_drop"]) for s in (0, 1))
    found = damage("max_acc_drop", exam, before, after)
    assert before.right and after.right and found.n == 8 == len(before.right.values)
    assert found.estimate == pytest.approx(before.right.value - after.right.value)
    with pytest.raises(UserError, match="where guessing gets 50%"):
        check_dense("max_acc_drop", exam, before, 0.6)


@pytest.mark.parametrize(
    ("given", "kind", "bound"),
    [
        ({"max_loss": "1%"}, "max_loss", 0.01),
        ({"max_loss": 0.01}, "max_loss", 0.01),
        ({"max_acc_drop": "0.5pt"}, "max_acc_drop", 0.005),
        ({"max_acc_drop": "0.5 points"}, "max_acc_drop", 0.005),
        ({"max_acc_drop": "0.005"}, "max_acc_drop", 0.005),
        ({"min_agreement": "99%"}, "min_agreement", 0.01),
        ({"min_agreement": 0.99}, "min_agreement", 0.01),
    ],
)
def test_bounds_are_read(given: dict[str, Any], kind: str, bound: float) -> None:
    promise = Promise(**given)
    assert (promise.kind, promise.bound) == (kind, pytest.approx(bound))
    assert Promise(**asdict(promise)) == promise and Promise().kind is None
    assert Promise(resolution=0.3, max_sparsity=0.9).sparsities == (0.3, 0.6, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-loss", "one"], "--max-loss one: expected a number such as 1% or 0.01"),
        (["--max-loss", "1"], "--max-loss 1.0: must be above 0 and below 1, or have its unit"),
        (["--max-acc-drop", "0.5"], "Write 0.5pt or 50pt"),
        (["--max-loss", "1%", "--min-agreement", "99%"], "are two promises"),
        (["--max-loss", "1%", "--sparsity", "0.5"], "--sparsity and --max-loss both say how much"),
        (["--max-loss", "1%", "--confidence", "95"], "--confidence 95"),
        (["--max-loss", "1%", "--resolution", "0.95"], "--resolution 0.95"),
        (["--max-acc-drop", "1pt", "--metric", "loss"], "--metric loss leaves out"),
        (["--max-loss", "1%"], "takes 79 held-out texts even if not one is hurt; here are 40"),
        (["--min-agreement", "99%"], "takes 321 held-out texts"),
        (["--max-acc-drop", "0.5pt"], "takes 643 held-out items"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_loads(
    arguments: list[str], message: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", "no/model", "--task", task, "--out", str(tmp_path / "out"), *arguments]
    try:
        code = main(words)
    except SystemExit as stopped:  # cyclopts itself refuses what a dataclass raises
        code = int(stopped.code or 0)
    assert code != 0 and message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_without_a_promise_its_options_are_said_to_have_no_effect(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", dense, "--task", task, *SMALL, "--num-items", "9", "--confidence", "0.9"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "--num-items has no effect without a promise" in told and "--confidence has no effect" in told


def test_every_task_must_keep_it(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"other={texts_file(tmp_path / 'other.txt', [' '.join(reversed(WORDS[i : i + 9])) for i in range(80)])}"
    model = tiny.model()
    options: dict[str, Any] = {"method": "seap-gen", "min_channels": 4, "progress": False}
    wide = Promise(max_loss=0.4, resolution=0.2)
    report = seap.prune_to_promise(model, toy.tokenizer(), task=[task, other], promise=wide, **options)
    found = report.provenance["promise"]["tasks"]
    assert set(found) == {"toy", "other"} and all(entry["upper"] <= 0.4 for entry in found.values())
    assert promised.ASSUMED.startswith("no text's loss")
