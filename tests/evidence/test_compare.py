"""Comparisons: every row that was promised, at equal sparsity and tokens, resumable, and refused early when wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy import TEXTS, WORDS, folder, texts_file

from seap.activations.stats import load_statistics
from seap.cli.main import main
from seap.errors import UserError
from seap.evaluation.options import Evaluation
from seap.evidence import compare as comparing
from seap.evidence.compare import compare
from seap.evidence.cost import plan_compare
from seap.evidence.plan import Comparison
from seap.selection.options import Pruning
from seap.shares import shares
from seap.text.options import Calibration

LOADING = {"device": "cpu"}


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(folder(tmp_path / "dense"))


@pytest.fixture
def specs(tmp_path: Path) -> tuple[str, str]:
    rows = [{"prompt": text, "answer": WORDS[i]} for i, text in enumerate(TEXTS)]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plain = texts_file(tmp_path / "plain.txt", [f"{text} {text} {text}" for text in TEXTS])
    return f"plain={plain}", f"asked={tmp_path / 'asked.jsonl'}"


def plan(specs: tuple[str, str], tmp_path: Path, **changes: Any) -> Comparison:
    options: dict[str, Any] = {
        "tasks": specs,
        "methods": ("seap", "seap-gen", "flap", "random", "seap-reference"),
        "sparsities": (0.2, 0.5),
        "calibration": Calibration(num_texts=20),
        "evaluation": Evaluation(context=4, continuation=3, window=16, max_new_tokens=2, num_items=6),
        "pruning": Pruning(min_channels=4),
    }
    return Comparison(**(options | changes))


def test_every_method_at_equal_sparsity_and_tokens(dense: str, specs: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = compare(dense, plan(specs, tmp_path, seeds=2), out, loading=LOADING, progress=False)
    rows = result["rows"]
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(result))
    # two dense rows; 5 methods × 2 sparsities × 2 seeds × 2 tasks
    assert len(rows) == 2 + 5 * 2 * 2 * 2
    needed = ("method", "task", "target_sparsity", "realised_sparsity", "loss", "ppl", "acc", "acc_stderr", "n", "seed")
    assert all(row.keys() >= set(needed) for row in rows)
    tokens = {row["calibration_tokens"] for row in rows if row["method"] in ("seap", "flap")}
    # a single token left over predicts nothing, so one may be missing
    assert result["calibration_tokens"] - 1 <= min(tokens) <= max(tokens) == result["calibration_tokens"]
    general = {row["calibration_tokens"] for row in rows if row["method"] == "seap-gen"}
    assert all(abs(found - result["calibration_tokens"]) <= 4 for found in general)
    for row in rows:
        if row["method"] == "dense":
            assert row["target_sparsity"] == row["realised_sparsity"] == row["kl"] == 0
        elif row["method"] == "seap-reference":
            assert row["realised_sparsity"] < row["target_sparsity"] - 0.05
        else:
            assert row["realised_sparsity"] == pytest.approx(row["target_sparsity"], abs=0.01)
    losses = {(r["method"], r["task"], r["target_sparsity"], r["seed"]): r["loss"] for r in rows}
    assert losses["seap", "plain", 0.5, 0] != losses["seap", "plain", 0.5, 1]
    assert {entry["axis"] for entry in result["overlap"]} == {"kv_groups", "channels"}
    assert all(entry["jaccard"][0][0] == 1 and entry["tasks"] == ["plain", "asked"] for entry in result["overlap"])


RIVALS = ("gisp", "llm-pruner", "shortgpt", "obs", "modegpt-mlp", "wanda-sp-sequential")


def test_todays_rivals_on_equal_terms(specs: tuple[str, str], tmp_path: Path) -> None:
    dense = str(folder(tmp_path / "dense", num_hidden_layers=5))
    asked = {"methods": RIVALS, "sparsities": (0.2, 0.3), "pruning": Pruning(min_channels=4, steps=2)}
    result = compare(dense, plan(specs[:1], tmp_path, **asked), tmp_path / "out", loading=LOADING, progress=False)
    rows = [row for row in result["rows"] if row["method"] != "dense"]
    assert [(row["target_sparsity"], row["method"]) for row in rows] == [(s, m) for s in (0.2, 0.3) for m in RIVALS]
    assert {row["calibration_tokens"] for row in rows} == {result["calibration_tokens"]}
    for row in rows:
        if row["method"] == "shortgpt":  # in fifths, not below what was asked
            assert row["realised_sparsity"] == pytest.approx(0.2 if row["target_sparsity"] == 0.2 else 0.4)
            assert [layer["channels"] for layer in row["layers"]].count(0) == round(5 * row["realised_sparsity"])
        else:
            assert row["realised_sparsity"] == pytest.approx(row["target_sparsity"], abs=0.01)
        assert ("steps" in row) == (row["method"] == "gisp")
        assert row["loss"] > 0 and row["kl"] > 0
    assert all(row["steps"] == 2 for row in rows if row["method"] == "gisp")


def test_on_choices_gisp_goes_by_the_margin(dense: str, tmp_path: Path) -> None:
    """Statistics with rows of choices go through files, other methods beside it see the text alone."""
    rows = [
        {"question": text, "choices": [WORDS[i], WORDS[i + 20], WORDS[i + 40]], "answer": i % 3}
        for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    specs = (f"asked={tmp_path / 'asked.jsonl'}",)
    small = Pruning(min_channels=4, steps=2)
    asked = {"methods": ("gisp", "llm-pruner", "flap"), "sparsities": (0.3,), "pruning": small, "seeds": 2}
    result = compare(dense, plan(specs, tmp_path, **asked), tmp_path / "out", loading=LOADING, progress=False)
    found = {(row["method"], row.get("loss_of")) for row in result["rows"]}
    assert found == {("dense", None), ("gisp", "choices"), ("llm-pruner", None), ("flap", None)}
    [first, *_] = (tmp_path / "out" / "stats").iterdir()
    assert load_statistics(first)[0].contrast
    words = ["prune", dense, "--stats", str(first), "--method", "gisp", "--steps", "2", "--sparsity", "0.3"]
    assert main([*words, "--min-channels", "4", "--out", str(tmp_path / "small"), "--device", "cpu"]) == 0
    notes = json.loads((tmp_path / "small" / "seap.json").read_text())["notes"]
    assert any("right choices less that on" in note for note in notes)


def test_the_plan_knows_what_the_rivals_run(specs: tuple[str, str], tmp_path: Path) -> None:
    dense = str(folder(tmp_path / "dense", num_hidden_layers=5))
    asked = {"methods": RIVALS, "sparsities": (0.2, 0.3), "pruning": Pruning(min_channels=4, steps=2)}
    found = plan_compare(dense, plan(specs[:1], tmp_path, **asked), tmp_path / "out", loading=LOADING)
    stages = {stage.name: stage for stage, _ in found.stages}
    assert {"calibrate", "gradients", "steps", "influence", "layers", "scores", "repair", "test"} <= stages.keys()
    # llm-pruner and gisp on the dense model; gisp's second step for each of two sparsities
    assert stages["gradients"].backward == stages["steps"].backward > 0
    assert not (tmp_path / "out").exists()


def test_methods_that_the_model_does_not_allow_are_refused_before_any_text(
    specs: tuple[str, str], tmp_path: Path
) -> None:
    experts = str(folder(tmp_path / "experts", "mixtral"))
    with pytest.raises(UserError, match="--score gisp doesn't know mixtures of experts"):
        asked = plan(specs, tmp_path, methods=("seap", "gisp"))
        compare(experts, asked, tmp_path / "out", loading=LOADING, progress=False)
    assert not (tmp_path / "out" / "stats").exists()
    with pytest.raises(UserError, match="unknown method 'shortgtp'; did you mean 'shortgpt'"):
        plan(specs, tmp_path, methods=("seap", "shortgtp"))


def test_controls_are_there_and_named(dense: str, specs: tuple[str, str], tmp_path: Path) -> None:
    general = texts_file(tmp_path / "general.txt", TEXTS[::-1])
    asked = {"controls": True, "general": f"general={general}", "methods": ("seap", "flap"), "sparsities": (0.4,)}
    result = compare(dense, plan(specs, tmp_path, **asked), tmp_path / "out", loading=LOADING, progress=False)
    found = {(row["method"], row["control"], row["made_for"], row["task"]) for row in result["rows"]}
    for method in ("seap", "flap"):
        for task in ("plain", "asked"):
            assert (method, None, task, task) in found
            assert (method, "pooled", "pooled", task) in found
            assert (method, "general-text", "general-text", task) in found
    assert ("seap", "other-task", "asked", "plain") in found and ("seap", "other-task", "plain", "asked") in found
    assert ("seap", "no-answers", "asked", "asked") in found
    assert not any(control == "no-answers" and task == "plain" for _, control, _, task in found)
    assert ("flap", "published-flap", "flap-1024x128", "plain") in found


def test_an_interrupted_run_goes_on_where_it_stopped(
    dense: str, specs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan(specs, tmp_path, methods=("seap", "random"))
    whole = compare(dense, asked, tmp_path / "whole", loading=LOADING, progress=False)
    real, calls = comparing.pruned_network, []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(comparing, "pruned_network", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(dense, asked, tmp_path / "out", loading=LOADING, progress=False)
    resumed = compare(dense, asked, tmp_path / "out", loading=LOADING, progress=False)
    assert len(calls) == 3 + 4  # two done, one interrupted; of the six networks four were left
    ignored = ("seconds",)
    strip = [[{k: v for k, v in row.items() if k not in ignored} for row in r["rows"]] for r in (whole, resumed)]
    assert strip[0] == strip[1] and whole["overlap"] == resumed["overlap"]
    compare(dense, asked, tmp_path / "out", loading=LOADING, progress=False)
    assert len(calls) == 7


def test_the_command(dense: str, specs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", dense, "--tasks", ",".join(specs), "--methods", "seap,random", "--sparsity", "0.3"]
    words += ["--continuation-context", "4", "--continuation", "3", "--max-new-tokens", "2", "--num-items", "6"]
    words += ["--min-channels", "4", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "compare" and {row["method"] for row in result["rows"]} == {"dense", "seap", "random"}
    assert main(words) == 0
    assert "added loss" in capsys.readouterr().out
    words = [
        "eval",
        dense,
        "--task",
        specs[0],
        "--dense",
        dense,
        "--continuation-context",
        "4",
        "--continuation",
        "3",
        "--json",
    ]
    assert main(words) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["kl"] == pytest.approx(0, abs=1e-6) and row["agreement"] == 1


def test_what_is_wrong_is_said_before_the_model_loads(specs: tuple[str, str], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"methods": ("seab",)}, "did you mean 'seap'"),
        ({"sparsities": (1.5,)}, "--sparsity 1.5"),
        ({"tasks": (specs[0], specs[0])}, "two tasks have one name"),
        ({"controls": True}, "--controls needs general text"),
        ({"seeds": 0}, "at least one"),
        ({"tasks": ("nope",)}, "unknown task 'nope'"),
        ({"controls": True, "general": f"general={tmp_path / 'none.txt'}"}, "doesn't exist"),
        ({"evaluation": Evaluation(metric="multiple-choice")}, "lacks columns question"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            compare("no/model", plan(specs, tmp_path, **changes), tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="expected numbers with commas"):
        shares("--sparsity", "0.2;0.5")
    assert not (tmp_path / "out").exists()


def test_no_seed_lets_calibration_see_the_test(tmp_path: Path) -> None:
    """A single file is split once: another seed draws other training texts, never test ones."""
    from tiny import model
    from toy import tokenizer

    from seap.evaluation.evaluate import load_test
    from seap.pruning.prune import build_corpora

    spec = f"plain={texts_file(tmp_path / 'plain.txt', [f'{text} {text} {text}' for text in TEXTS])}"
    words = tokenizer()
    asked = {tuple(words(item.text)["input_ids"]) for item in load_test(spec, Evaluation(num_items=1000)).items}
    for seed in range(4):
        corpus = build_corpora(model("llama"), words, spec, Calibration(seed=seed, num_texts=1000, seq_len=60))["plain"]
        assert len(corpus.rows) + len(asked) == len(TEXTS) and not asked & set(corpus.rows)


def test_names_that_stand_for_other_text_are_refused(specs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be named pooled"):
        plan((f"pooled={tmp_path / 'asked.jsonl'}", specs[0]), tmp_path)


def parts(tmp_path: Path, train: list[str]) -> str:
    (place := tmp_path / "parts").mkdir(exist_ok=True)
    texts_file(place / "train.txt", train)
    texts_file(place / "test.txt", TEXTS[:20])
    return f"parts={place}"


def test_a_row_of_other_calibration_text_is_made_anew(dense: str, tmp_path: Path) -> None:
    def run(train: list[str], out: str) -> dict[str, Any]:
        spec, reading = parts(tmp_path, train), Calibration(num_texts=20, max_tokens=60)
        asked = plan((spec, spec), tmp_path, tasks=(spec,), methods=("flap",), sparsities=(0.4,), calibration=reading)
        result = compare(dense, asked, tmp_path / out, loading=LOADING, progress=False)
        row: dict[str, Any] = result["rows"][1]
        return row

    ahead, back = TEXTS[20:], [" ".join(reversed(text.split())) for text in TEXTS[20:]]
    first, again, fresh = run(ahead, "one"), run(back, "one"), run(back, "two")
    assert first["calibration_tokens"] == again["calibration_tokens"]
    assert again["data_hash"] == fresh["data_hash"] != first["data_hash"] and again["loss"] == fresh["loss"]
    assert run(ahead, "one") == first  # and the first one's row is there still


def test_general_text_counts_where_something_is_made_of_it(dense: str, specs: tuple[str, str], tmp_path: Path) -> None:
    short = f"short={texts_file(tmp_path / 'short.txt', TEXTS[:6])}"

    def tokens(out: str, **changes: Any) -> int:
        asked = plan(specs, tmp_path, methods=("flap",), sparsities=(0.4,), **changes)
        found: int = compare(dense, asked, tmp_path / out, loading=LOADING, progress=False)["calibration_tokens"]
        return found

    own = tokens("own")
    assert tokens("named", general=short) == own > tokens("controls", general=short, controls=True)


def test_masks_of_other_options_are_no_part_of_the_overlap(dense: str, specs: tuple[str, str], tmp_path: Path) -> None:
    def overlap(**options: Any) -> Any:
        asked = plan(specs, tmp_path, methods=("flap",), sparsities=(0.4,), pruning=Pruning(min_channels=4, **options))
        return compare(dense, asked, tmp_path / "out", loading=LOADING, progress=False)["overlap"]

    first, other = overlap(), overlap(allocate="logistic", score="magnitude")
    assert first != other and overlap() == first


def test_options_that_do_nothing_here_are_refused_or_said(
    dense: str, specs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", dense, "--tasks", specs[0], "--methods", "random", "--sparsity", "0.3", "--out"]
    assert main([*words, str(tmp_path / "one"), "--target-size", "100KB"]) == 1
    assert "--sparsity and --target-size both say how much to remove" in capsys.readouterr().err
    small = ["--num-items", "4", "--window", "16", "--metric", "loss", "--device", "cpu", "--min-channels", "4"]
    assert main([*words, str(tmp_path / "two"), *small, "--general", specs[1]]) == 0
    assert "--general has no effect without --controls or --vocabulary" in capsys.readouterr().err


def test_columns_are_named_task_by_task(dense: str, tmp_path: Path) -> None:
    (tmp_path / "named.csv").write_text("goal,sol\n" + "".join(f"{text},{WORDS[0]}\n" for text in TEXTS))
    told = f"named={tmp_path / 'named.csv'}[prompt=goal,answer=sol]"
    words = ["compare", dense, "--tasks", f"{told},plain={texts_file(tmp_path / 'plain.txt')}", "--methods", "random"]
    words += ["--sparsity", "0.3", "--num-items", "4", "--window", "16", "--metric", "loss", "--device", "cpu"]
    assert main([*words, "--min-channels", "4", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"] == ["named", "plain"]
