"""The tables that scripts make of results: several models, methods and sparsities, and cells that are missing."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "runs" / "pages"))
    return importlib.import_module("real_page")


def cell(model: str, task: str, method: str, sparsity: float, **figures: Any) -> dict[str, Any]:
    about = {"model": model, "task": task, "method": method, "made_for": task, "control": None, "seed": 0}
    return about | {"target_sparsity": sparsity, "realised_sparsity": sparsity, "chance": 0.25} | figures


def dense(model: str, task: str, acc: float) -> dict[str, Any]:
    return cell(model, task, "dense", 0.0, made_for=None, acc=acc, acc_stderr=0.05, loss=2.0, kl=0.0)


def lines(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]


CELLS = [
    dense("one", "a", 0.6),
    dense("one", "b", 0.3),  # not above guessing
    dense("one", "c", 0.9),  # no network was tested on it
    cell("one", "a", "seap", 0.5, added_loss=0.2, added_loss_stderr=0.03, acc=0.5, acc_stderr=0.05, added_acc=-0.1),
    cell("one", "b", "seap", 0.5, added_loss=0.4, added_loss_stderr=0.04, acc=0.3, acc_stderr=0.05, added_acc=0.0),
    cell("one", "a", "flap", 0.5, added_loss=1.0, added_loss_stderr=0.1, acc=0.4, acc_stderr=0.05, added_acc=-0.2),
    cell("one", "a", "seap", 0.2, added_loss=0.1, added_loss_stderr=0.02),
    cell("one", "a", "seap", 0.5, control="general-text", added_loss=9.0),
    dense("two", "a", 0.8),
    cell("two", "a", "seap", 0.5, added_loss=0.3, acc=0.7, acc_metric="pass@1", acc_stderr=0.06, loops=0.25),
]


def test_means_are_over_the_tasks_that_there_are_and_say_so(real: Any) -> None:
    head, _, *rows = lines(real.quality(real.own_rows(CELLS)))
    assert head[:4] == ["model", "removed", "method", "added loss"]
    assert [row[:3] for row in rows] == [
        ["one", "0%", "`dense`"],
        ["", "20%", "`seap`"],
        ["", "50%", "`seap`"],
        ["", "50%", "`flap`"],
        ["two", "0%", "`dense`"],
        ["", "50%", "`seap`"],
    ]
    by_name = {(row[1], row[2]): dict(zip(head, row, strict=True)) for row in rows[:4]}
    assert by_name["50%", "`seap`"]["added loss"] == "+0.30 ± 0.03"  # (0.2 + 0.4) / 2, √(0.03² + 0.04²) / 2 = 0.025
    assert by_name["50%", "`flap`"]["added loss"] == "+1.00 ± 0.10 (1 of 2)"
    assert by_name["50%", "`seap`"]["accuracy, %"] == "50.0 ± 5.0" and by_name["50%", "`seap`"]["− dense"].startswith(
        "−10"
    )
    assert by_name["0%", "`dense`"]["accuracy, %"] == "60.0 ± 5.0"
    assert by_name["20%", "`seap`"]["accuracy, %"] == by_name["50%", "`flap`"]["KL"] == "–"


def test_what_is_written_has_a_table_of_its_own(real: Any) -> None:
    head, _, *rows = lines(real.writing(real.own_rows(CELLS)))
    assert head == ["model", "removed", "method", "right, %", "loop, %"]
    assert rows == [["two", "50%", "`seap`", "70.0 ± 6.0", "25.0 ± 0.0"]]


def test_the_published_cells_make_tables(real: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((ROOT / "results" / "quality" / "real_models.json").read_text())
    assert len(lines(real.quality(real.own_rows(found["cells"])))) > 2
    assert "NaN" not in real.writing(real.own_rows(found["cells"]))


def test_a_page_gets_its_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "runs" / "pages"))
    tables = importlib.import_module("tables")
    page = "# Page\n\n<!-- one -->\nold\n<!-- end -->\n\ntext\n"
    assert tables.filled(page, {"one": "| a |"}) == "# Page\n\n<!-- one -->\n| a |\n<!-- end -->\n\ntext\n"
    with pytest.raises(SystemExit, match="0 places for the table two"):
        tables.filled(page, {"two": ""})
    told = [tables.span(seconds) for seconds in (0.2, 31, 600, 11_500, 120_000, 280_000)]
    assert told == ["1 s", "31 s", "10 min", "3.2 h", "33 h", "3.2 days"]
    assert [tables.size(number) for number in (1e7, 8e8, 2.7e9, 5.69e11)] == ["–", "0.8 GB", "2.7 GB", "569 GB"]
