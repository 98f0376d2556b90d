"""runs/quality/real_models.py on tiny models: rows of their own, resumed, paired with the dense ones, and a table."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from toy import TEXTS, WORDS, folder

FAST = "--items 8 --windows 6 --say-items 4 --say-tokens 4 --answer-items 4 --answer-tokens 4 --off-windows 3".split()
FAST += "--num-texts 20 --seq-len 24 --tokens 300 --effort quick".split()


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT / "runs" / "quality"))
    try:
        yield importlib.import_module("real_models")
    finally:
        sys.path.remove(str(ROOT / "runs" / "quality"))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"{path.stem}={path}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line: two models, a task of choices and one of generated answers."""
    place = tmp_path_factory.mktemp("real")
    ask = [{"question": t, "choices": [w, "w90 w91"], "answer": i % 2} for i, (t, w) in enumerate(zip(TEXTS, WORDS))]  # noqa: B905
    say = [{"prompt": text, "answer": WORDS[i]} for i, text in enumerate(TEXTS)]
    tasks = [jsonl(place / "ask.jsonl", ask), jsonl(place / "say.jsonl", say)]
    models = [f"{n}={folder(place / n, n, intermediate_size=80)}" for n in ("llama", "mistral")]
    return ["--models", *models, "--tasks", *tasks, "--out", str(place / "out"), *FAST]


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["real_models.py", *words])
    script.main()


def rows_of(words: list[str]) -> dict[str, Any]:
    out = Path(words[words.index("--out") + 1])
    return {str(p.relative_to(out / "rows")): json.loads(p.read_text()) for p in (out / "rows").glob("*/*/*.json")}


def test_rows_are_made_once_and_in_the_order_of_the_rounds(
    script: Any, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = [*words, "--methods", "flap", "random", "--sparsities", "0.4", "0.2"]
    run(script, monkeypatch, *asked, "--minutes", "0")
    assert "the time is over" in capsys.readouterr().out and not rows_of(words)

    run(script, monkeypatch, *asked)
    made = [line.split(": ")[0].split(" rows/")[1] for line in capsys.readouterr().out.splitlines()]
    assert len(made) == len(set(made)) == 2 * 2 + 2 * 2 * 2 * 2
    assert made[:4] == [f"{m}/{t}/dense.json" for m in ("llama", "mistral") for t in ("ask", "say")]
    assert made[4:8] == [f"llama/{t}/flap-{s}-seed0.json" for t in ("ask", "say") for s in ("0.4", "0.2")]
    assert all("flap" in name for name in made[4:12]) and all("random" in name for name in made[12:])

    rows = rows_of(words)
    dense, row = rows["llama/ask/dense.json"], rows["llama/ask/flap-0.4-seed0.json"]
    assert row["realised_sparsity"] == pytest.approx(0.4, abs=0.05) and row["made_for"] == "ask"
    assert row["added_loss"] == pytest.approx(row["loss"] - dense["loss"]) and row["added_loss_stderr"] > 0
    assert row["added_acc"] == pytest.approx(row["acc"] - dense["acc"]) and "added_acc_norm" in row
    assert {"kl", "agreement", "loops", "endless", "said", "versions", "commit", "options"} <= row.keys()
    assert row["off_task"]["say"]["n"] == 3 and list(row["off_task"]) == ["say"] and dense["chance"] == 0.5
    answers = rows["llama/say/flap-0.4-seed0.json"]
    assert answers["acc_metric"] == "exact match" and answers["n"] == 4 and "added_endless" in answers
    tokens = {(r["model"], r["task"]): r["calibration_tokens"] for r in rows.values() if r["method"] == "flap"}
    assert len(set(tokens.values())) <= 2 and all(0 < count <= 300 for count in tokens.values())

    gone = Path(words[words.index("--out") + 1]) / "rows/mistral/say/random-0.2-seed0.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    run(script, monkeypatch, *asked)
    assert [line.split(" rows/")[1].split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "mistral/say/random-0.2-seed0.json"
    ]
    again = json.loads(gone.read_text())
    assert {k: again[k] for k in ("loss", "acc", "kl", "off_task")} == {
        k: before[k] for k in ("loss", "acc", "kl", "off_task")
    }

    result = tmp_path / "real.json"
    run(script, monkeypatch, "--table", "--out", str(gone.parents[3]), "--result", str(result))
    table = json.loads(result.read_text())
    assert len(table["cells"]) == len(rows) and {row["method"] for row in table["means"]} == {"flap", "random"}
    assert all(row["cases"] == 4 and row["complete"] for row in table["means"])


def test_other_settings_need_another_folder(script: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(script, monkeypatch, *words, "--methods", "random", "--sparsities", "0.2", "--minutes", "0")
    with pytest.raises(SystemExit, match=r"rows of other settings \(evaluation.num_items 8 → 9\); name another --out"):
        run(script, monkeypatch, *words, "--items", "9")
    file = Path(words[words.index("--out") + 1]) / "settings.json"
    older = json.loads(file.read_text())
    del older["settings"]["prompts"], older["settings"]["evaluation"]["say"], older["settings"]["pruning"]["steps"]
    file.write_text(json.dumps(older))  # of a time when there were no such options
    run(script, monkeypatch, *words, "--methods", "random", "--sparsities", "0.2", "--minutes", "0")
    assert json.loads(file.read_text())["settings"]["prompts"] == "own"
    with pytest.raises(SystemExit, match="prompts own → lm-eval"):
        run(script, monkeypatch, *words, "--prompts", "lm-eval")


def case(method: str, sparsity: float, **figures: float) -> dict[str, Any]:
    own = {"method": method, "target_sparsity": sparsity, "model": "m", "task": "t", "seed": 0, "made_for": "t"}
    errors = {f"{name}_stderr": 0.01 for name in figures}
    return own | {"acc_metric": "multiple choice", "control": None} | figures | errors


def test_what_is_kept_and_lost_by_hand() -> None:
    sys.path.insert(0, str(ROOT / "runs" / "quality"))
    try:
        table = importlib.import_module("real_table")
    finally:
        sys.path.remove(str(ROOT / "runs" / "quality"))
    rows = [
        case("dense", 0.0, acc=0.6, said=0.5, loss=2.0) | {"chance": 0.25},
        case("seap", 0.2, acc=0.58, added_acc=-0.02, added_loss=0.1, said=0.48),
        case("seap", 0.5, acc=0.52, added_acc=-0.08, added_loss=0.5, said=0.40),
        case("flap", 0.2, acc=0.5, added_acc=-0.1, added_loss=0.5, said=0.3),
        case("flap", 0.5, acc=0.4, added_acc=-0.2, added_loss=1.0, said=0.1),
        case("random", 0.2, acc=0.6, added_acc=0.0, added_loss=0.0, said=0.5),  # a floor, never the rival
    ]
    found = table.Table(rows)
    first, second = table.ratios(found)
    assert first["added_acc"]["ratio"] == pytest.approx(0.2) and first["added_acc"]["rival"] == "flap"
    assert first["added_acc"]["kept"] and first["added_loss"]["ratio"] == pytest.approx(0.2)
    assert second["added_loss"]["ratio"] == pytest.approx(0.5) and second["added_loss"]["kept"] is False
    kept = {(row["method"], row["by"]): row for row in table.keeps(found)}
    # 0.58 / 0.6 = 0.967 at 20%, 0.867 at 50%: 0.95 is crossed at 0.2 + 0.3 · 0.0167 / 0.1 = 0.25
    assert kept["seap", "choice"]["95%"] == {"sparsity": pytest.approx(0.25), "beyond": False}
    assert kept["seap", "choice"]["90%"]["sparsity"] == pytest.approx(0.4)
    assert kept["seap", "generation"]["95%"]["sparsity"] == pytest.approx(0.2 + 0.3 * 0.01 / 0.16)
    assert kept["random", "choice"]["90%"] == {"sparsity": 0.2, "beyond": True}
    other = {"task": "u", "made_for": "u"}
    more = [case(m, 0.2, added_loss=loss) | other for m, loss in (("seap", 0.3), ("flap", 0.7))]
    partly = case("gisp", 0.2, added_loss=0.2)  # has one of the two cases: told, but not the best rival
    one, _ = table.ratios(table.Table([*rows, rows[0] | other, *more, partly]))
    assert one["added_loss"]["rival"] == "flap" and one["added_loss"]["ratio"] == pytest.approx(0.2 / 0.6)
    assert [(r["rival"], r["cases"], r["ratio"]) for r in one["added_loss"]["of_fewer"]] == [
        ("gisp", 1, pytest.approx(0.5))
    ]
    guessing = [rows[0] | {"acc": 0.26}, *rows[1:]]
    assert "added_acc" not in table.ratios(table.Table(guessing))[0]  # where the dense model only guesses


def test_the_page_of_public_models_has_all_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seap report` takes the cells as a comparison; controls have a section of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "runs" / "pages"))
    page = importlib.import_module("real_report")
    result = json.loads(page.RESULT.read_text())
    found = page.comparison(result, "smollm2")
    assert len(found["rows"]) == sum(cell["model"] == "smollm2" for cell in result["cells"]) > 100
    monkeypatch.setattr(sys, "argv", ["real_report.py", "--out", str(tmp_path / "page.html")])
    page.main()
    written = (tmp_path / "page.html").read_text()
    assert all(method in written for method in found["methods"])
    assert "general-text" in written or "general text" in written
