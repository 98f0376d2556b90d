"""The script of the paper's tables, dry-run on a tiny model and a few local items."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from toy import TEXTS, WORDS, folder, texts_file

SCRIPT = ROOT / "runs" / "paper" / "paper.py"


@pytest.fixture
def paper() -> Any:
    for package in ("lm_eval", "accelerate", "datasets"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("paper", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def piqa(where: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"goal": text, "sol1": WORDS[i % 60], "sol2": f"{WORDS[i % 50]} w9", "label": i % 2}
        for i, text in enumerate(TEXTS)
    ]
    where.mkdir(parents=True)
    for part in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), where / f"{part}.parquet")


def test_a_dry_run_makes_all_four_tables(
    paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = folder(tmp_path / "dense", intermediate_size=200)
    piqa(tmp_path / "data" / "piqa")
    general = texts_file(tmp_path / "general.txt", [f"{text} {text}" for text in TEXTS])
    monkeypatch.setattr(paper, "SPARSITIES", (0.2,))
    words = [str(dense), "--data", str(tmp_path / "data"), "--general", f"wikitext2={general}", "--tasks", "piqa"]
    words += ["--limit", "3", "--tokens", "64", "--window", "16", "--new-tokens", "2", "--repeats", "1"]
    paper.main([*words, "--size", "7b", "--device", "cpu", "--out", str(tmp_path / "paper.json")])
    tables = capsys.readouterr().out.split("\nTable ")[1:]
    lines = [{line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]} for table in tables]
    variants = {"seap", "seap-uniform", "seap-adaptive"}
    compared = {"wanda-sp", "flap", "seap-gen", "seap"}
    assert set(lines[0]) == {"dense", *compared, "seap-reference", "seap-now"} and set(lines[1]) == variants
    assert set(lines[2]) == set(lines[0]) | variants and set(lines[3]) == compared
    # ours beside the published figures of Llama-2-7B
    assert lines[0]["dense"][-1] == "66.97" and lines[1]["seap"][-1] == "65.46" and lines[3]["seap"][-1] == "×1.17"
    assert all(float(line[2]) >= 0 for table in lines for line in table.values())
    result = json.loads((tmp_path / "paper.json").read_text())
    assert {row["metric"] for row in result["rows"]} == {"acc", "acc_norm", "loss", "ratio"}
    realised = {row["realised_sparsity"] for row in result["rows"] if row["method"] in compared}
    assert max(realised) - min(realised) < 0.02
