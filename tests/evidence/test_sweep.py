"""The frontier: rows against the dense model, its speed, its page, and what is refused early."""

import json
from pathlib import Path
from typing import Any

import page_example
import pytest
import tiny
from toy import TEXTS, WORDS, folder, texts_file

from seap.bench import speed
from seap.cli.main import main
from seap.disk.manifest import MANIFEST
from seap.errors import UserError
from seap.page import document
from seap.page.sections.sweep import frontier_section, frontier_words

SMALL = ["--min-channels", "4", "--device", "cpu", "--num-items", "8", "--repeats", "2"]
SMALL += ["--continuation-context", "4", "--continuation", "3"]


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(folder(tmp_path / "dense"))


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"toy={texts_file(tmp_path / 'toy.txt', [f'{text} {text}' for text in TEXTS])}"


def test_the_command(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "out", ["sweep", dense, "--task", task, *SMALL, "--sparsity", "0.5,0.2"]
    assert main([*words, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / "sweep.json").read_text()) and result["kind"] == "sweep"
    whole, some, half = result["rows"]
    assert [row["sparsity"] for row in result["rows"]] == [0, 0.2, 0.5]
    assert whole["added_loss"] == whole["acc_drop"] == whole["disagreement"] == 0 and "speed" not in whole
    assert whole["bytes"] > some["bytes"] > half["bytes"] and whole["params"] == result["params"] > half["params"]
    for row in (some, half):
        assert row["realised_sparsity"] == pytest.approx(row["sparsity"], abs=0.01)
        assert row["added_loss"] == pytest.approx(row["loss"] - whole["loss"], abs=1e-6)
        assert row["relative_loss"] == pytest.approx(row["loss"] / whole["loss"] - 1, abs=1e-6)
        assert row["acc_drop"] == pytest.approx(whole["acc"] - row["acc"]) and row["acc_stderr"] is not None
        assert row["relative_loss"] < row["relative_loss_upper"] and row["disagreement"] < row["disagreement_upper"]
        assert set(row["speed"]) == {"prefill", "decode"}
        assert all(found["tokens_per_s"] > 0 and found["ratio"] > 0 for found in row["speed"].values())
    about = ("versions", "machine", "commit", "command", "seconds", "data_hash", "options", "calibration_tokens")
    assert all(result[name] for name in about if name != "commit")
    assert main([*words, "--out", str(out)]) == 0
    assert "added loss" in capsys.readouterr().out


def test_without_accuracy_where_only_the_loss_counts(dense: str, task: str, tmp_path: Path) -> None:
    words = ["sweep", dense, "--task", task, *SMALL, "--sparsity", "0.2", "--metric", "loss"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert all("acc" not in row for row in json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "--sparsity 1.5"),
        (["--sparsity", "a"], "expected numbers with commas"),
        (["--method", "seab"], "did you mean 'seap'"),
        (["--repeats", "0"], "at least 1"),
        (["--task", "other=README.md"], "doesn't exist"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_loads(
    arguments: list[str],
    message: str,
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "no/model", "--task", task, "--out", "out", *arguments]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_speed_is_of_both_phases_and_relative_to_the_first() -> None:
    model = tiny.model()
    found = speed.compare_speed({"dense": model, "same": model}, batch=2, repeats=3)
    assert set(found) == {"prefill", "decode"}
    for by_name in found.values():
        assert by_name["dense"]["ratio"] == 1 and by_name["same"]["ratio"] > 0
        assert by_name["same"]["ratio_low"] <= by_name["same"]["ratio"] <= by_name["same"]["ratio_high"]
    times = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}  # ratios 2, 3 and 1
    figures = speed._figures(times["a"], times["b"], 12)
    assert figures == {"tokens_per_s": 4.0, "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5}


def row(sparsity: float, **more: Any) -> dict[str, Any]:
    found = {"task": "toy", "realised_sparsity": sparsity, "added_loss": sparsity, "ppl": 9.0, "disagreement": sparsity}
    return found | {"bytes": 4e6 * (1 - sparsity), "relative_loss": 0.5 * sparsity, "loss": 2 + sparsity} | more


def test_its_page(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    timed = {"prefill": {"ratio": 1.5, "tokens_per_s": 30.0, "dense_tokens_per_s": 20.0}}
    data = {"kind": "sweep", "model": "m", "rows": [row(0.0), row(0.4, added_loss_stderr=0.01, speed=timed)]}
    [file] = page_example.write(tmp_path, sweep=data)
    text = document.build([file], tmp_path / "report.html").read_text()
    assert "At 40% sparsity, the most that was swept, the loss on toy changes by +0.400 ± 0.010" in text
    assert "prefill ×1.50" in text and "there is no verdict" not in text and "Speed was not measured" not in text
    made = {path.name for path in (tmp_path / "report_files").iterdir()}
    names = ("frontier_loss", "frontier_disagreement", "frontier_speed", "frontier_size")
    assert made == {f"{name}.{kind}" for name in names for kind in ("png", "csv")} | {MANIFEST}
    lines = (tmp_path / "report_files" / "frontier_loss.csv").read_text().split()
    assert lines == ["task,realised_sparsity,relative_loss,relative_loss_stderr", "toy,0.0,0.0,", "toy,0.4,0.2,"]


def test_a_page_of_nothing_swept(tmp_path: Path) -> None:
    empty: dict[str, Any] = {"kind": "sweep", "model": "m", "rows": []}
    assert frontier_section(empty).empty and "Nothing was swept" in frontier_words(empty)
    pytest.importorskip("jinja2")
    [file] = page_example.write(tmp_path, sweep={"kind": "sweep", "model": "m", "rows": [{"task": WORDS[0]}]})
    with pytest.raises(UserError, match=r"rows\[0\] has no realised_sparsity"):
        document.build([file], tmp_path / "report.html")


@pytest.mark.parametrize("method", "gisp llm-pruner shortgpt obs modegpt-mlp wanda-sp-sequential".split())
def test_methods_to_compare_with_are_swept(method: str, dense: str, task: str, tmp_path: Path) -> None:
    words = ["sweep", dense, "--task", task, *SMALL, "--method", method, "--sparsity", "0.3", "--metric", "loss"]
    assert main([*words, "--effort", "quick", "--out", str(tmp_path / "out"), "-q"]) == 0
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    whole, row = found["rows"]
    assert found["method"] == method and row["params"] < whole["params"] and row["speed"]
    least, most = (0.3, 0.34) if method == "shortgpt" else (0.27, 0.31)  # whole layers of three
    assert least <= row["realised_sparsity"] <= most
    assert document.build([tmp_path / "out" / "sweep.json"], tmp_path / "page.html").is_file()
