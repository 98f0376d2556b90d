"""lm-evaluation-harness on local files: upstream's prompts, its figures equal to ours, and plain `lm_eval` as well."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from paths import SHARED
from tiny import model
from toy import WORDS, folder, tokenizer

import seap
from seap.errors import UserError
from seap.evaluation import choices, harness, harness_data, harness_tasks
from seap.pruning.commands import prune_to_folder

pytest.importorskip("lm_eval")

LETTERS = ["A", "B", "C", "D"]


def words(start: int, number: int) -> str:
    return " ".join(WORDS[(start * 11 + i * 5) % len(WORDS)] for i in range(number))


def arc(i: int) -> dict[str, Any]:
    texts = [words(i + j, 1 + (i + j) % 4) for j in range(4)]
    return {"question": words(i, 6), "choices": {"text": texts, "label": LETTERS}, "answerKey": LETTERS[i % 4]}


# Rows as upstream's data set has them, all columns that its prompts read and more.
UPSTREAM: dict[str, Callable[[int], dict[str, Any]]] = {
    "arc_challenge": lambda i: {"id": f"a{i}", **arc(i)},
    "arc_easy": lambda i: {"id": f"e{i}", **arc(i)},
    "boolq": lambda i: {"question": words(i, 5), "passage": words(i + 1, 9), "idx": i, "label": i % 2},
    "gsm8k": lambda i: {"question": words(i, 6), "answer": f"{words(i, 3)}\n#### {i}"},
    "hellaswag": lambda i: {
        "activity_label": "Roof",
        "ctx_a": f"{words(i, 4)}.",
        "ctx_b": words(i + 1, 2),
        "endings": [f"{words(i + j, 3)} [step] on" for j in range(4)],
        "label": str(i % 4),
    },
    "ifeval": lambda i: {
        "key": i,
        "prompt": words(i, 6),
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_bullets": None}],
    },
    "openbookqa": lambda i: {"id": f"o{i}", "question_stem": arc(i).pop("question"), **arc(i)},
    "piqa": lambda i: {"goal": words(i, 5), "sol1": words(i, 3), "sol2": words(i + 1, 4), "label": i % 2},
    "wikitext": lambda i: {"page": f" = w{i} = \n \n {words(i, 9)} , w4 @-@ w5 . \n = = w{i} = = \n w6 "},
    "winogrande": lambda i: {
        "sentence": f"{words(i, 4)} _ {words(i + 2, 3)}.",
        "option1": WORDS[i],
        "option2": WORDS[i + 1],
        "answer": str(1 + i % 2),
    },
}
# The same rows as our local files have them, where that differs.
LOCAL: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "arc_easy": lambda row: {
        "question": row["question"],
        "choices": row["choices"]["text"],
        "answer": LETTERS.index(row["answerKey"]),
    },
    "hellaswag": lambda row: {
        "question": f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}",
        "choices": [ending.replace(" [step]", "") for ending in row["endings"]],
        "answer": int(row["label"]),
    },
    "boolq": lambda row: {
        "question": row["question"],
        "answer": bool(row["label"]),
        "passage": row["passage"],
    },
}
PARTS = {"boolq": "test", "hellaswag": "validation", "piqa": "validation", "winogrande": "validation"}


def upstream_rows(name: str, number: int = 12) -> list[dict[str, Any]]:
    return [UPSTREAM[name](i) for i in range(number)]


def local_rows(name: str, number: int = 12) -> list[dict[str, Any]]:
    rows = [LOCAL.get(name, dict)(row) for row in upstream_rows(name, number)]
    if name != "wikitext":
        return rows
    lines = "\n".join(row["page"] for row in rows).splitlines(keepends=True)
    return [{"text": line if line.strip() else ""} for line in lines]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ../shared/data/tasks: the same names of folders and files, the same columns."""
    root = tmp_path_factory.mktemp("tasks")
    for name, task in harness_data.LOCAL.items():
        for part in {"train", PARTS.get(name, "test")}:
            write(root / task.folders[-1] / f"{part}-00000-of-00001.parquet", local_rows(name))
    return root


def requests(task: Any) -> list[tuple[Any, ...]]:
    """Everything that the harness would ask a model, and what it would hold for right."""
    task.set_config("num_fewshot", 0)
    task.build_all_requests()
    gold = [(task.doc_to_text(doc), task.doc_to_target(doc)) for doc in task.eval_docs]
    return [request.args for request in task.instances] + gold


@pytest.fixture
def nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """IFEval's data of nltk, as if it were here."""
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "find", lambda resource: resource)


def skip_without_packages(name: str) -> None:
    for package in harness_data.LOCAL[name].packages:
        pytest.importorskip(package)


@pytest.mark.usefixtures("nltk_data")
@pytest.mark.parametrize("name", harness_data.LOCAL)
def test_prompts_of_local_files_are_upstreams(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    skip_without_packages(name)
    rows = datasets.Dataset.from_list(upstream_rows(name))
    asked: list[Any] = []

    def load_dataset(path: str, **_: Any) -> dict[str, Any]:
        asked.append(path)
        return dict.fromkeys(("train", "validation", "test"), rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    upstream = harness_tasks.manager(harness_data.LOCAL[name].home).load(name)["tasks"][name]
    assert len(asked) == 1
    _, (local,) = harness_tasks.local_tasks([name], data, 0)
    assert len(asked) == 1  # nothing but our files
    assert requests(local) == requests(upstream)
    assert local.dump_config()["metric_list"] == upstream.dump_config()["metric_list"]


def test_prompts_written_out() -> None:
    easy = {"question": "Why?", "choices": ["one", "two"], "answer": 1}
    (item,) = harness.as_items("arc_easy", [easy])
    assert (item.question, item.choices, item.label) == ("Question: Why?\nAnswer:", ("one", "two"), 1)
    assert item.text == "Question: Why?\nAnswer: two"
    (item,) = harness.as_items("piqa", [{"goal": "Sit", "sol1": "down", "sol2": "up ", "label": 0}])
    assert (item.question, item.choices, item.label) == ("Question: Sit\nAnswer:", ("down", "up "), 0)
    (item,) = harness.as_items("boolq", [{"passage": "Sky.", "question": "is it blue", "answer": True}])
    assert (item.question, item.choices, item.label) == ("Sky.\nQuestion: is it blue?\nAnswer:", ("no", "yes"), 1)
    stem = {"question_stem": "It is", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    (item,) = harness.as_items("openbookqa", [stem])
    assert (item.question, item.choices, item.label) == ("It is", ("a", "b"), 1)
    ending = {
        "activity_label": "Roof",
        "ctx_a": "A man.",
        "ctx_b": "he",
        "endings": ["[x] sits", "is  on"],
        "label": "1",
    }
    (item,) = harness.as_items("hellaswag", [ending])
    assert (item.question, item.choices, item.label) == ("Roof: A man. He", (" sits", "is on"), 1)


def test_every_task_runs_on_a_tiny_model(data: Path, tmp_path: Path) -> None:
    words_of, names = tokenizer(), [name for name in harness_data.LOCAL if name not in ("gsm8k", "ifeval")]
    words_of.pad_token = None
    found = harness.evaluate(model(max_position_embeddings=512), words_of, names, data=data, limit=5)
    assert words_of.pad_token is None
    metrics = {name: {row["metric"]: row for row in found if row["task"] == name} for name in names}
    assert {name for name in names if "acc" in metrics[name]} == set(names) - {"wikitext"}
    assert {name for name in names if "acc_norm" in metrics[name]} == set(names) - {"boolq", "wikitext", "winogrande"}
    assert set(metrics["wikitext"]) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    for row in found:
        assert row["n"] == 5 and row["num_fewshot"] == 0 and row["filter"] is None
        assert row["doc_to_text"] is not None and row["harness_version"]
        assert (row["stderr"] is None) == (row["task"] == "wikitext")
    assert json.loads(json.dumps(found)) == found
    assert "titles" in metrics["boolq"]["acc"]["note"] and metrics["piqa"]["acc"]["note"] is None


def test_examples_come_from_the_train_part_and_answers_are_generated(data: Path) -> None:
    found = harness.evaluate(
        model(max_position_embeddings=1024), tokenizer(), ["gsm8k"], data=data, limit=2, num_fewshot=1
    )
    assert {row["filter"] for row in found} == {"strict-match", "flexible-extract"}
    assert all(row["metric"] == "exact_match" and row["num_fewshot"] == 1 for row in found)
    with pytest.raises(UserError, match=r"gsm8k: the harness generates up to 256 tokens, the model holds 64"):
        harness.evaluate(model(), tokenizer(), ["gsm8k"], data=data, limit=2)


def test_a_prompt_that_was_cut_is_told(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        harness.evaluate(model(max_position_embeddings=10), tokenizer(), ["piqa"], data=data, limit=2)
        assert not caplog.records
        harness.evaluate(model(max_position_embeddings=6), tokenizer(), ["piqa"], data=data, limit=2)
    assert [record.getMessage() for record in caplog.records] == [
        "seap eval --harness: prompts longer than the model's 6 tokens lost their beginning"
    ]


def test_what_cannot_run_is_refused_before_the_model_loads(data: Path, tmp_path: Path) -> None:
    def refused(message: str, *names: str, where: Path = tmp_path, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            harness.check(names, where, **options)

    refused("did you mean 'arc_easy'", "arc_eazy", where=data)
    refused("comes from the Hub: leave --harness-data out", "mmlu", where=data)
    refused("no task of lm-evaluation-harness named")
    refused("--harness-limit 0; at least 1", "piqa", where=data, limit=0)
    refused("--num-fewshot -1; allowed: 0", "piqa", where=data, num_fewshot=-1)
    refused("has no folder hellaswag", "hellaswag")
    refused("has no folder openbookqa or obqa", "openbookqa")
    write(tmp_path / "winogrande/train.parquet", local_rows("winogrande"))
    refused("has parts train; the harness evaluates on validation", "winogrande")
    write(tmp_path / "arc_easy/test.parquet", local_rows("arc_easy"))
    harness.check(["arc_easy"], tmp_path)
    refused("has no train part to draw examples from; use --num-fewshot 0", "arc_easy", num_fewshot=2)
    write(tmp_path / "piqa/validation.parquet", local_rows("gsm8k"))
    refused("columns question, answer; the harness's piqa reads goal, sol1, sol2, label", "piqa")
    write(tmp_path / "arc_challenge/test.parquet", [{"question": "w3", "choices": ["w4", "w5"], "answer": 2}])
    refused(r"answer 2; allowed: a list, and an index into it from 0", "arc_challenge")
    for name in ("gsm8k", "wikitext"):
        with pytest.raises(UserError, match=f"{name} isn't multiple choice"):
            harness.as_items(name, upstream_rows(name))


def test_without_local_files_names_are_checked_and_a_failed_fetch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    with pytest.raises(UserError, match=r"unknown task 'arc_eazy' of lm-evaluation-harness; did you mean 'arc_easy'"):
        harness.check(["arc_eazy"])
    harness.check(["arc_easy", "mmlu"])

    def offline(path: str, **_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"'piqa': couldn't fetch its data set \(ConnectionError: no network\)"):
        harness.evaluate(model(), tokenizer(), ["piqa"])


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'lm-eval, which is not installed: pip install "seap\[eval\]"'):
        harness.check(["piqa"])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pruned")
    dense = folder(root / "dense", max_position_embeddings=512)
    prune_to_folder(str(dense), root / "small", method="random", sparsity=0.4, progress=False)
    return root / "small"


def figures(results: dict[str, Any]) -> dict[str, float]:
    return {key.removesuffix(",none"): results[key] for key in ("acc,none", "acc_norm,none")}


def ours(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["task"] == name}


def test_plain_lm_eval_reads_a_pruned_folder(pruned: Path, data: Path, tmp_path: Path) -> None:
    harness.export(["arc_easy", "piqa"], data, tmp_path / "definitions")
    arguments = f"pretrained={pruned},trust_remote_code=True,dtype=float32"
    command = [sys.executable, "-W", "ignore", "-m", "lm_eval", "--model", "hf", "--model_args", arguments]
    command += ["--tasks", "arc_easy,piqa", "--include_path", str(tmp_path / "definitions"), "--device", "cpu"]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "out")]
    caches = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | caches, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    small, words_of = seap.load(str(pruned), device="cpu", dtype="float32")
    assert (
        len({layer.mlp.up_proj.out_features for layer in small.model.layers}) > 1
    )  # widths differ from layer to layer
    found = harness.evaluate(small, words_of, ["arc_easy", "piqa"], data=data)
    for name in ("arc_easy", "piqa"):
        assert figures(written["results"][name]) == pytest.approx(ours(found, name), abs=0)


def test_definitions_take_no_foreign_folders_place(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="isn't empty"):
        harness.export(["arc_easy"], data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for _ in range(2):  # its own it replaces
        harness.export(["arc_easy"], data, tmp_path / "definitions")
    text = (tmp_path / "definitions" / "arc_easy.yaml").read_text()
    assert str(tmp_path / "definitions" / "arc_easy") in text


def test_with_seap_imported_lm_eval_needs_no_remote_code(pruned: Path, data: Path) -> None:
    from lm_eval import simple_evaluate

    _, tasks = harness_tasks.local_tasks(["arc_easy"], data, 0)
    options = {"pretrained": str(pruned), "dtype": "float32"}
    manager = harness_tasks.manager("arc")
    plain = simple_evaluate("hf", options, tasks, device="cpu", batch_size=4, task_manager=manager, log_samples=False)
    small, words_of = seap.load(str(pruned), device="cpu", dtype="float32")
    found = harness.evaluate(small, words_of, ["arc_easy"], data=data)
    assert figures(plain["results"]["arc_easy"]) == pytest.approx(ours(found, "arc_easy"), abs=0)


def agree(model: Any, tokenizer: Any, name: str, where: Path, limit: int) -> None:
    items = harness.as_items(name, harness.local_rows(name, where)[:limit])
    expected = {row["metric"]: row for row in harness.evaluate(model, tokenizer, [name], data=where, limit=limit)}
    longest = getattr(model.config, "max_position_embeddings", None)
    rows = choices.choice_rows(tokenizer, items, longest=longest)
    for metric, mine in zip(("acc", "acc_norm"), choices.multiple_choice(model, rows, items), strict=True):
        assert mine.n == expected["acc"]["n"] == min(limit, len(items))
        if metric in expected:
            assert f"{mine.value:.4f} ± {mine.stderr:.4f}" == (
                f"{expected[metric]['value']:.4f} ± {expected[metric]['stderr']:.4f}"
            )


CHOICES = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande"]


@pytest.mark.parametrize("name", CHOICES)
def test_our_multiple_choice_agrees_on_a_tiny_model(name: str, data: Path) -> None:
    agree(model(max_position_embeddings=512), tokenizer(), name, data, 12)


@pytest.mark.skipif(not (SHARED / "models/natural-7m").is_dir(), reason="needs ../shared, the workshop's data")
@pytest.mark.parametrize("name", ["arc_easy", "piqa"])
def test_our_multiple_choice_agrees_on_real_text(name: str) -> None:
    # float32: in bfloat16 the harness sums log-likelihoods in bfloat16
    natural, pieces = seap.load(str(SHARED / "models/natural-7m"), device="cpu", dtype="float32")
    agree(natural, pieces, name, SHARED / "data/tasks", 60)


def test_a_task_that_lacks_something_is_refused_before_a_model_is_loaded(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nltk = pytest.importorskip("nltk")
    real = harness_tasks.importlib.util.find_spec
    gone = lambda name: None if name == "langdetect" else real(name)  # noqa: E731
    monkeypatch.setattr(harness_tasks.importlib.util, "find_spec", gone)
    with pytest.raises(UserError, match=r"'ifeval' needs langdetect, .* pip install \"lm-eval\[ifeval\]\""):
        harness.check(["ifeval"], data)
    there = lambda name: real(name) or real("json")  # noqa: E731
    monkeypatch.setattr(harness_tasks.importlib.util, "find_spec", there)

    def absent(resource: str) -> None:
        raise LookupError(resource)

    monkeypatch.setattr(nltk.data, "find", absent)
    with pytest.raises(UserError, match=r"reads nltk's punkt_tab, .*: python -m nltk.downloader punkt_tab"):
        harness.check(["ifeval"], data)


def test_the_harness_runs_no_generated_code() -> None:
    for name in ("humaneval", "humaneval_instruct", "mbpp"):
        with pytest.raises(UserError, match=f"'{name}' runs what the model writes in .* --run-generated-code"):
            harness.check([name])


@pytest.mark.usefixtures("nltk_data")
def test_ifeval_by_what_is_written(data: Path) -> None:
    skip_without_packages("ifeval")
    found = harness.evaluate(model(max_position_embeddings=2048), tokenizer(), ["ifeval"], data=data, limit=2)
    rows = {row["metric"]: row for row in found}
    assert rows["prompt_level_strict_acc"]["value"] == 1  # the toy tokenizer has no comma
    assert rows["prompt_level_strict_acc"]["n"] == 2 and "inst_level_loose_acc" in rows
