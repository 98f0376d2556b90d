"""Tests of a task: the metric that its columns allow, refusals before a model is loaded, rows with all they need."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import model
from toy import TEXTS, WORDS, tokenizer
from vocabularies import byte_level

from seap.errors import UserError
from seap.evaluation.evaluate import Test as ItemsOfTest
from seap.evaluation.evaluate import evaluate, load_test, prepare
from seap.evaluation.likeness import Reference
from seap.evaluation.options import Evaluation
from seap.evidence.options import Promise
from seap.evidence.promised import load_tests
from seap.text.items import Item


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return f"toy={path}"


def choices(number: int = 3) -> list[dict[str, Any]]:
    return [
        {"question": text, "choices": [f"{word} {i}" for i in range(number)], "answer": i % number}
        for i, (text, word) in enumerate(zip(TEXTS, WORDS, strict=False))
    ]


PROMPTS = [{"prompt": text, "answer": WORDS[i]} for i, text in enumerate(TEXTS)]
PLAIN = [{"text": f"{text} {text} {text}"} for text in TEXTS]
SMALL: dict[str, Any] = {"context": 4, "continuation": 3, "window": 10, "max_new_tokens": 3, "num_items": 7}


@pytest.mark.parametrize(
    ("rows", "metric", "n"),
    [(choices(), "multiple choice", 7), (PROMPTS, "exact match", 7), (PLAIN, "continuation among four", 7)],
)
def test_the_metric_is_what_the_columns_are_for(rows: Any, metric: str, n: int, tmp_path: Path) -> None:
    options = Evaluation(**SMALL)
    test = load_test(jsonl(tmp_path / "a.jsonl", rows), options)
    dense, other = model("llama"), model("llama", seed=1)
    exam = prepare(test, dense, tokenizer(), options)
    row = evaluate(dense, exam, reference=Reference(other))
    assert row["acc_metric"] == metric and row["n"] == n and 0 <= row["acc"] <= 1
    assert (row["acc_norm"] is not None) == (metric == "multiple choice")
    assert row["loss"] > 0 and row["loss_stderr"] > 0 and row["loss_n"] == 7 and row["ppl"] > 1
    assert row["kl"] > 0 and 0 <= row["agreement"] <= 1 and row["window"] == 10
    assert evaluate(dense, exam, reference=Reference(other)) == row
    alone = evaluate(dense, exam)
    assert {key: row[key] for key in alone} == pytest.approx(alone)
    assert json.dumps(row)


def test_loss_alone_and_another_draw(tmp_path: Path) -> None:
    spec = jsonl(tmp_path / "a.jsonl", PLAIN)
    test = load_test(spec, Evaluation(metric="loss", **SMALL))
    dense = model("llama")
    row = evaluate(dense, prepare(test, dense, tokenizer(), Evaluation(metric="loss", **SMALL)))
    assert row["acc"] is None and row["acc_metric"] is None and row["loss_n"] == 7 and "kl" not in row
    other = load_test(spec, Evaluation(metric="loss", test_seed=1, **SMALL))
    assert other.data_hash != test.data_hash


def test_of_texts_too_short_for_a_continuation_the_loss_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, dense = jsonl(tmp_path / "a.jsonl", PLAIN), model("llama")
    options = Evaluation(**SMALL | {"context": 60})
    row = evaluate(dense, prepare(load_test(spec, options), dense, tokenizer(), options))
    assert row["acc"] is None and row["loss_n"] == 7
    assert "needs four texts of 63 tokens" in caplog.text and "The loss alone is measured" in caplog.text
    asked = Evaluation(**SMALL | {"context": 60}, metric="continuation")
    with pytest.raises(UserError, match="needs four texts of 63 tokens"):
        prepare(load_test(spec, asked), dense, tokenizer(), asked)
    [(test, settings)] = load_tests([spec], Promise(max_acc_drop="60pt"), options)
    with pytest.raises(UserError, match="needs four texts"):
        prepare(test, dense, tokenizer(), settings)


def test_windows_are_no_longer_than_the_model_reads(tmp_path: Path) -> None:
    options = Evaluation(window=1000, num_items=50, metric="loss")
    test = load_test(jsonl(tmp_path / "a.jsonl", [{"text": " ".join(TEXTS)}] * 1 + PLAIN), options)
    rows = prepare(test, model("llama"), tokenizer(), options).windows
    assert max(len(row.ids) for row in rows) <= 64


def test_bad_tests_are_refused_before_any_model(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    jsonl(folder / "train.jsonl", PLAIN)
    jsonl(folder / "test.jsonl", PLAIN[:1])
    with pytest.raises(UserError, match="its test part has one item"):
        load_test(f"toy={folder}", Evaluation())
    ragged = jsonl(tmp_path / "ragged.jsonl", choices(3)[:20] + choices(4)[20:])
    with pytest.raises(UserError, match=r"items have 3, 4 choices, .*--ragged-choices"):
        load_test(ragged, Evaluation())
    assert load_test(ragged, Evaluation(ragged_choices=True)).metric == "multiple-choice"
    outside = jsonl(tmp_path / "outside.jsonl", [{"question": "w3", "choices": ["w4", "w5"], "answer": 2}] * 9)
    with pytest.raises(UserError, match="2"):
        load_test(outside, Evaluation())
    plain = jsonl(tmp_path / "plain.jsonl", PLAIN)
    for metric in ("multiple-choice", "exact-match"):
        with pytest.raises(UserError, match=f"--metric {metric}: task toy lacks columns"):
            load_test(plain, Evaluation(metric=metric))  # type: ignore[arg-type]
    prompts = jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    with pytest.raises(UserError, match=r"in \d+ of \d+ gold answers --extract .* finds nothing"):
        load_test(prompts, Evaluation(extract=r"answer: (\w+)"))
    with pytest.raises(UserError, match="no regular expression"):
        Evaluation(extract="(")
    with pytest.raises(UserError, match="--stride 9: must be from 1 to --window 8"):
        Evaluation(window=8, stride=9)


def test_nats_per_byte_are_the_loss_over_the_bytes_of_what_is_scored(tmp_path: Path) -> None:
    dense, words = model("llama", vocab_size=400, max_position_embeddings=512), byte_level()
    texts = ["the cat sat on the mat", "Zażółć gęślą jaźń, the dog said"]
    options = Evaluation(metric="loss", window=512)
    test = ItemsOfTest("toy", tuple(Item(text=text) for text in texts), "loss")
    exam = prepare(test, dense, words, options)
    tokens = sum(len(words(text)["input_ids"]) - 1 for text in texts)  # <s> is given
    assert exam.scored == (tokens, sum(len(text.encode()) for text in texts))
    row = evaluate(dense, exam)
    assert row["nats_per_byte"] == pytest.approx(row["loss"] * tokens / exam.scored[1])
    assert row["nats_per_byte_stderr"] == pytest.approx(row["loss_stderr"] * tokens / exam.scored[1])
    asked = ItemsOfTest("toy", tuple(Item(text=f"{t} yes", prompt=t, answer=" yes") for t in texts), "loss")
    assert prepare(asked, dense, words, Evaluation(metric="loss", weigh="answer")).scored[1] == 2 * len(" yes")
    few = Evaluation(metric="loss", window=8, num_items=2)
    assert len(prepare(test, dense, words, few).windows) == 2
    assert prepare(test, dense, words, few, every_window=True).scored[1] > exam.scored[1] // 2
