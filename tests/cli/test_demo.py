"""The demo, cut short: two methods, one sparsity, a few items."""

import json
from pathlib import Path

import pytest

from seap.cli import app as cli_base
from seap.cli import demo
from seap.cli.main import main
from seap.page import sources
from seap.text import builtin


def test_the_demo_compares_saves_and_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = dict(list(builtin.TASKS.items())[:2]) | {"arithmetic": builtin.TASKS["arithmetic"]}
    monkeypatch.setattr(demo, "METHODS", ("seap", "random"))
    monkeypatch.setattr(demo, "SPARSITIES", (0.5,))
    monkeypatch.setattr(demo, "TASKS", few)
    assert main(["demo", "--out", str(tmp_path), "--num-items", "10"]) == 0
    text = capsys.readouterr().out
    assert "50.0% removed" in text and "Next:" in text and "arithmetic" in text
    result = json.loads((tmp_path / "demo.json").read_text())
    assert len(result["rows"]) == len(few) * 3 and all(row["loss"] > 0 for row in result["rows"])
    by_method = {row["method"]: row["realised_sparsity"] for row in result["rows"]}
    assert by_method["seap"] == pytest.approx(by_method["random"], abs=1e-3) == pytest.approx(0.5, abs=1e-3)
    accuracy = {
        method: sum(row["acc"] for row in result["rows"] if row["method"] == method) / len(few)
        for method in ("dense", "random")
    }
    assert accuracy["dense"] > accuracy["random"]
    sizes, speeds = result["checkpoint"]["bytes"], result["checkpoint"]["tokens_per_s"]
    assert sizes["pruned"] < 0.65 * sizes["dense"] and set(speeds) == {"dense", "pruned"}
    assert (tmp_path / "checkpoint" / "config.json").is_file()
    page = tmp_path / "report.html"
    assert str(page) in text and "arithmetic" in page.read_text()
    # without the extra it says what is missing, and that is all
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    made = demo.write_page(tmp_path)
    assert made["report"] is None
    demo.show(result | made, cli_base.results)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "No page" in line]
    assert 'pip install "seap[report]"' in line
