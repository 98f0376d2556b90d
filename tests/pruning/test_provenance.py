"""A pruned model remembers how it was made, whoever saves it: seap.json, the masks, the card; and the damage."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ids, model
from toy import TEXTS, folder, texts_file
from toy import tokenizer as toy_tokenizer
from transformers import AutoModelForCausalLM, pipeline
from transformers.utils import logging as transformers_logging

import seap
from seap.cli.main import main
from seap.exports.push import push
from seap.page.describe import describe
from seap.pruning.card import model_card
from seap.pruning.commands import prune_to_folder
from seap.pruning.damage import FITTED, HELD
from seap.selection.mask import load_masks

SMALL: dict[str, Any] = {"min_channels": 4, "progress": False}
QUICK: dict[str, Any] = SMALL | {"method": "wanda-sp", "sparsity": 0.3}


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"toy={texts_file(tmp_path / 'toy.txt')}"


def train_(pruned: Any) -> None:
    """A step of training."""
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.01)
    pruned(ids(), labels=ids()).loss.backward()
    optimizer.step()


def test_a_model_pruned_in_python_is_saved_with_what_is_known(tmp_path: Path, task: str) -> None:
    pruned, out = model(), tmp_path / "out"
    report = seap.prune(pruned, toy_tokenizer(), task=task, **QUICK)
    train_(pruned)
    pruned.save_pretrained(out)
    told = json.loads((out / "seap.json").read_text())
    assert told["realised_sparsity"] == report.realised_sparsity and "digests" not in told
    masks, about = load_masks(out / "seap" / "mask.safetensors")
    assert about["tasks"] == ["toy"] and all(torch.equal(masks[key], report.masks[key]) for key in report.masks)
    assert "pruned for toy" in (out / "README.md").read_text()
    toy_tokenizer().save_pretrained(out)
    assert describe(str(out))["kind"] == "pruned checkpoint"
    assert {"seap.json", "seap/mask.safetensors"} <= set(push(out, "me/small", dry_run=True)["files"])


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_that_was_loaded_is_saved_with_it_again(tmp_path: Path, task: str, trained: bool) -> None:
    prune_to_folder(str(folder(tmp_path / "dense")), tmp_path / "once", tasks=[task], **QUICK)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    if trained:
        train_(loaded)
    loaded.save_pretrained(tmp_path / "twice")
    first, second = (json.loads((tmp_path / name / "seap.json").read_text()) for name in ("once", "twice"))
    assert "digests" in first and second.pop("saved_again") is True
    assert {**second, "digests": first["digests"]} == first
    card = (tmp_path / "twice" / "README.md").read_text()
    assert card.endswith("may have been trained since.\n")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    assert torch.equal(again(ids()).logits, loaded.eval()(ids()).logits)
    again.save_pretrained(tmp_path / "twice")  # over itself
    assert (tmp_path / "twice" / "README.md").read_text() == card
    assert "damage" in describe(str(tmp_path / "twice"))


def test_what_no_longer_fits_is_not_carried_on(tmp_path: Path, task: str) -> None:
    prune_to_folder(str(folder(tmp_path / "dense")), tmp_path / "once", tasks=[task], **QUICK)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    prune_to_folder(
        str(tmp_path / "dense"), tmp_path / "once", tasks=[task], **QUICK | {"sparsity": 0.5, "overwrite": True}
    )
    loaded.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").is_file() and not (tmp_path / "twice" / "seap.json").exists()


def test_a_readme_of_somebody_elses_stays(tmp_path: Path, task: str) -> None:
    pruned = model()
    seap.prune(pruned, toy_tokenizer(), task=task, **QUICK)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    pruned.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "mine" and (tmp_path / "out" / "seap.json").is_file()


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_pruning_tells_the_first_model_and_the_total(tmp_path: Path, task: str, saved: bool) -> None:
    pruned = model()
    pruned.config._name_or_path = "org/base"
    first = seap.prune(pruned, toy_tokenizer(), task=task, **QUICK)
    if saved:
        pruned.save_pretrained(tmp_path / "once")
        pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    second = seap.prune(pruned, toy_tokenizer(), task={"more": TEXTS}, **QUICK)
    before = second.to_dict()["pruned_before"]
    assert (before["base"], before["base_params"]) == ("org/base", first.params_before)
    assert before["removed_of_base"] == pytest.approx(1 - second.params_after / first.params_before)
    assert f"org/base's {first.params_before:,} parameters" in str(second) and "pruned before" in str(second)
    pruned.save_pretrained(tmp_path / "twice")
    masks, _ = load_masks(tmp_path / "twice" / "seap" / "mask.safetensors")
    assert {key: mask.numel() for key, mask in masks.items()} == {k: m.numel() for k, m in first.masks.items()}
    for key, mask in masks.items():
        assert int(mask.sum()) == int(second.masks[key].sum()) and bool((mask <= first.masks[key]).all())
    card = (tmp_path / "twice" / "README.md").read_text()
    assert "It had been pruned before, for toy. Of the" in card and 'base_model: "org/base"' in card


def test_the_damage_is_that_of_the_held_out_text_by_hand(task: str) -> None:
    dense, pruned = model(), model()
    report = seap.prune(pruned, toy_tokenizer(), task=task, **QUICK)
    assert report.damage is not None and report.damage["text"] == HELD
    losses: dict[str, list[float]] = {"loss_before": [], "loss_after": []}
    kls, tokens = 0.0, 0
    from seap.text.tasks import load_items

    with torch.no_grad():
        for item in load_items(task, "test"):
            given = torch.tensor([toy_tokenizer()(item.text)["input_ids"]])
            logits = {"loss_before": dense(given).logits[0], "loss_after": pruned(given).logits[0]}
            before, after = (one.log_softmax(-1).double() for one in logits.values())
            kls += float((before.exp() * (before - after)).sum())
            tokens += given.shape[1]
            for name, one in logits.items():
                losses[name] += torch.nn.functional.cross_entropy(one[:-1], given[0, 1:], reduction="none").tolist()
    assert report.damage["tokens"] == tokens and report.damage["kl"] == pytest.approx(kls / tokens, abs=1e-5)
    for name, each in losses.items():
        assert report.damage[name] == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_texts_in_memory_and_weights_alone(task: str) -> None:
    report = seap.prune(model(), toy_tokenizer(), task={"mine": TEXTS}, **QUICK)
    assert report.damage is not None and report.damage["text"] == FITTED
    assert seap.prune(model(), method="random", sparsity=0.3, min_channels=4).damage is None
    assert seap.prune(model(), toy_tokenizer(), task=task, measure_damage=False, **QUICK).damage is None


def test_a_report_prints_as_a_short_table() -> None:
    report = seap.prune(model(), method="random", sparsity=0.3, min_channels=4)
    lines = str(report).splitlines()
    assert len(lines) < 12 and "pruned for no task" in lines[0] and "layers" not in str(report)
    assert "<table>" in report._repr_html_() and "kv groups" in report.masks._repr_html_()  # type: ignore[attr-defined]
    assert deepcopy(report).params_after == report.params_after


def test_the_card_has_what_the_hub_reads_and_no_local_path(tmp_path: Path, task: str) -> None:
    dense = folder(tmp_path / "dense")
    (dense / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n---\nA model.\n")
    prune_to_folder(str(dense), tmp_path / "out", tasks=[task], **QUICK)
    told = json.loads((tmp_path / "out" / "seap.json").read_text())
    command = f"seap prune {dense} --task={task} --sparsity 0.3 --out {tmp_path / 'out'}"
    source = {"toy": {"source": "hub:org/data:main"}}
    card = model_card(told | {"command": command, "corpora": source})
    assert str(tmp_path) not in card and "seap prune dense --task=toy=toy.txt --sparsity 0.3 --out out" in card
    for line in ("pipeline_tag: text-generation", 'license: "apache-2.0"', 'language: ["en", "de"]'):
        assert line in card
    assert "datasets: [org/data]" in card and "base_model" not in card and "@inproceedings" in card
    assert f"went from {told['damage']['loss_before']:.3f}" in card
    assert 'base_model: "org/base"' in model_card(told | {"model": "org/base"})
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_a_pipeline_of_a_pruned_model_says_nothing(tmp_path: Path, task: str, caplog: pytest.LogCaptureFixture) -> None:
    pruned = model()
    seap.prune(pruned, toy_tokenizer(), task=task, **QUICK)
    transformers_logging.get_logger("transformers").addHandler(caplog.handler)
    made = pipeline("text-generation", model=pruned, tokenizer=toy_tokenizer(), device="cpu")
    transformers_logging.get_logger("transformers").removeHandler(caplog.handler)
    assert "not supported" not in caplog.text
    assert made("w3 w4", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("w3 w4")


def test_eval_shows_the_dense_model_and_what_was_added(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, out = str(folder(tmp_path / "dense")), str(tmp_path / "out")
    prune_to_folder(dense, Path(out), tasks=[task], **QUICK)
    words = [
        "eval",
        out,
        "--task",
        task,
        "--dense",
        dense,
        "--num-items",
        "8",
        "--continuation-context",
        "2",
        "--continuation",
        "2",
    ]
    assert main([*words, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["added_loss"] == pytest.approx(row["loss"] - row["dense"]["loss"]) and row["dense"]["acc"] is not None
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "added" in printed and "dense" in printed and f"{row['added_loss']:+.3f}" in printed
    figures = seap.evaluate(out, task=task, dense=dense, num_items=8, context=2, continuation=2)
    assert figures["toy"]["loss"] == row["loss"] and f"{row['added_loss']:+.3f}" in str(figures)
    assert "<table>" in figures._repr_html_()


def test_the_card_quotes_what_transformers_says_without_seap(tmp_path: Path, task: str) -> None:
    prune_to_folder(str(folder(tmp_path / "dense")), tmp_path / "out", tasks=[task], **QUICK)
    program = "from transformers import AutoModelForCausalLM as M; M.from_pretrained('out')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    quoted = "pruned by seap: import seap before loading it"
    assert done.returncode == 1 and quoted in last and quoted in card
