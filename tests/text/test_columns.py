"""Columns: what carries the task is used, under the names that data sets give it, and what is left out is named."""

import json
from pathlib import Path
from typing import Any

import paths
import pytest

from seap.errors import UserError
from seap.text import decoding
from seap.text.items import Item, to_items
from seap.text.readers import Row
from seap.text.tasks import TaskSpec, load_items

CASES = paths.SHARED / "cases"


def read(path: Path, rows: list[dict[str, Any]]) -> list[Item]:
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_items(TaskSpec(name="mine", path=path), "train")


def one(tmp_path: Path, row: dict[str, Any]) -> Item:
    (item,) = read(tmp_path / "a.jsonl", [row])
    return item


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    decoding.say_once.cache_clear()


ASKED = {"question": "When?", "answer": "noon"}


@pytest.mark.parametrize("name", ["context", "passage", "document", "Article", "support", "premise"])
def test_a_context_comes_before_the_question(tmp_path: Path, name: str) -> None:
    item = one(tmp_path, {name: "It came at noon.\n", **ASKED})
    assert item.prompt == "It came at noon.\nQuestion: When?\nAnswer:"
    assert item.text == f"{item.prompt} noon"
    item = one(tmp_path, {"question": "When?", "choices": ["noon", "six"], "answer": 1, name: "It came."})
    assert (item.question, item.text) == ("It came.\nWhen?", "It came.\nWhen? six")
    item = one(tmp_path, {name: "It came.", "prompt": "So:", "answer": "x"})
    assert (item.prompt, item.text) == ("It came.\nSo:", "It came.\nSo: x")


def test_a_context_that_the_prompt_has_is_not_repeated(tmp_path: Path) -> None:
    item = one(tmp_path, {"context": "It came.", "prompt": "It came. When?", "answer": "x"})
    assert item.prompt == "It came. When?"


def test_several_contexts_and_lists_are_all_used(tmp_path: Path) -> None:
    item = one(tmp_path, {"passage": ["a", "b"], "context": "c", "evidence": None, **ASKED})
    assert item.prompt == "a\nb\nc\nQuestion: When?\nAnswer:"
    with pytest.raises(UserError, match=r"a.jsonl line 1: context is \{'x': 1\}, a dict"):
        one(tmp_path, {"context": {"x": 1}, **ASKED})


LETTERED: list[tuple[list[str], Any, int]] = [
    (["A", "B", "C", "D"], "C", 2),
    (["A", "B", "C", "D"], 2, 2),
    (["a", "b"], "B", 1),
    (["option_a", "option_b", "option_c"], "b", 1),
    (["choiceA", "choiceB"], "A", 0),
    (["opa", "opb", "opc", "opd"], 3, 3),
    (["answer_a", "answer_b"], "b", 1),
    (["ending0", "ending1", "ending2"], 1, 1),
    (["ending0", "ending1", "ending2"], "1", 1),
]


@pytest.mark.parametrize("key", ["answer", "answerKey", "label"])
@pytest.mark.parametrize(("columns", "answer", "label"), LETTERED)
def test_choices_in_columns_of_their_own(
    tmp_path: Path, columns: list[str], answer: Any, label: int, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"question": "Which?", **{name: f"the {name}" for name in columns}, key: answer}
    item = one(tmp_path, row)
    assert item.choices == tuple(f"the {name}" for name in columns)
    assert (item.label, item.text) == (label, f"Which? the {columns[label]}")
    assert "left out" not in caplog.text


@pytest.mark.parametrize(("answers", "labels"), [([1, 2, 1], [0, 1, 0]), ([0, 1, 1], [0, 1, 1]), (["2", "1"], [1, 0])])
def test_numbered_choices_count_as_the_file_does(tmp_path: Path, answers: list[Any], labels: list[int]) -> None:
    rows = [{"question": f"{i}?", "option1": "x", "option2": "y", "label": a} for i, a in enumerate(answers)]
    found = {item.question: item.label for item in read(tmp_path / "a.jsonl", rows)}
    assert all(found[question] == labels[int(str(question)[0])] for question in found)


def test_numbered_choices_that_may_count_either_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.jsonl line 1: answer 1 of option1, option2: .* count from 0 or from 1"):
        one(tmp_path, {"question": "?", "option1": "x", "option2": "y", "label": 1})


def test_blank_lettered_choices_are_no_choices(tmp_path: Path) -> None:
    item = one(tmp_path, {"question": "?", "A": "x", "B": "y", "C": "", "D": None, "answer": "B"})
    assert (item.choices, item.label) == (("x", "y"), 1)


def test_options_beside_a_prompt_are_choices(tmp_path: Path) -> None:
    item = one(tmp_path, {"prompt": "Which?", "options": ["x", "y"], "answer": "B"})
    assert item == Item(text="Which? y", question="Which?", choices=("x", "y"), label=1)
    with pytest.raises(UserError, match=r"line 1: choices .*; allowed: .* \(choices from options\)"):
        one(tmp_path, {"prompt": "Which?", "options": {"temperature": 1}, "answer": "B"})


def test_the_first_of_several_answers(tmp_path: Path) -> None:
    squad = {"id": "7", "title": "T", "context": "It came.", "question": "When?"}
    assert one(tmp_path, squad | {"answers": {"text": ["noon", "12"], "answer_start": [1, 2]}}).answer == " noon"
    assert one(tmp_path, squad | {"answers": ["noon"]}).answer == " noon"
    with pytest.raises(UserError, match="every row is blank or without a label"):
        one(tmp_path, squad | {"answers": {"text": [], "answer_start": []}})


def test_headings_are_known_without_case_and_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(" Question ,ANSWER\nWhen?,noon\n")
    (item,) = load_items(f"mine={tmp_path / 'a.csv'}", "train")
    assert item.answer == " noon"


def test_what_is_left_out_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"{i}", "answer": "a", "mood": "kind", "source": "x" if i else None} for i in range(9)]
    read(tmp_path / "a.jsonl", rows)
    load_items(f"mine={tmp_path / 'a.jsonl'}", "test")
    assert [record.message for record in caplog.records] == ["task mine: left out: mood, source (read: prompt, answer)"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path / "a.jsonl", [{"text": "x", "label": None}, {"context": "c", **ASKED, "text": "own"}])
    assert not caplog.records


def test_cases_of_columns_that_carry_the_task() -> None:
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    answered = load_items(f"t={CASES / 'e1_context_qa.jsonl'}", "train")
    assert all(
        item.prompt and item.prompt.startswith("Order ") and "\nQuestion: When" in item.prompt for item in answered
    )
    chosen = load_items(f"t={CASES / 'd15_mmlu.csv'}", "train")
    assert all(len(item.choices) == 4 and item.label is not None for item in chosen)


def test_a_column_s_name_with_a_line_break_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^row: wrong columns: 'que\\nstion', b;") as error:
        to_items([Row("row", {"que\nstion": "a", "b": "c"})], "mine")
    assert "\n" not in str(error.value)
