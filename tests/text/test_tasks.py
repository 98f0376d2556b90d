"""Tasks: every format, shape and folder, the split, the Hub's table, and every error by what it says."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seap.errors import UserError
from seap.text import builtin, hub, tasks
from seap.text.items import Item
from seap.text.tasks import TaskSpec, load_items, parse_spec, spec_source

SHARED = paths.SHARED / "data" / "tasks"
ROWS = [{"text": f"row {i}"} for i in range(10)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def everything(path: Path, name: str = "mine") -> list[Item]:
    spec = TaskSpec(name=name, path=path)
    return load_items(spec, "train") + load_items(spec, "test")


def one(path: Path, row: dict[str, Any], name: str = "mine") -> Item:
    (item,) = load_items(TaskSpec(name=name, path=write(path, [row])), "train")
    return item


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


# Formats


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_format_of_rows_gives_the_same_items(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f'Zeile {i}, "zwei"\nü', "extra": "ignored"} for i in range(5)]
    items = everything(write(tmp_path / f"data.{ending}", rows))
    assert sorted(item.text for item in items) == [row["text"] for row in rows]
    assert all(item == Item(text=item.text) for item in items)


@pytest.mark.parametrize("ending", ["txt", "text", "md", "TXT"])
def test_plain_text_is_split_at_blank_lines(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.{ending}"
    path.write_bytes(b"\xef\xbb\xbf\none\ntwo\r\n \t\nthree\n\n\n\nfour\n")
    assert sorted(item.text for item in everything(path)) == ["four", "one\ntwo", "three"]


def test_plain_text_without_blank_lines_is_split_at_lines(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one\ntwo\nthree\n\n")
    assert sorted(item.text for item in everything(tmp_path / "data.txt")) == ["one", "three", "two"]


def test_jsonl_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a\u2028b\x85c"}\r\n\n{"text": "d"}', encoding="utf-8")
    assert {item.text for item in everything(tmp_path / "data.jsonl")} == {"a\u2028b\x85c", "d"}


# Shapes


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [("2 + 2 =", "4", "2 + 2 = 4"), ("2 + 2 = ", "4", "2 + 2 = 4"), ("2 + 2 =", "\n4", "2 + 2 =\n4")],
)
def test_prompt_and_answer_join_with_one_space_at_most(tmp_path: Path, prompt: str, answer: str, text: str) -> None:
    item = one(tmp_path / "a.jsonl", {"prompt": prompt, "answer": answer})
    assert (item.text, item.prompt) == (text, prompt)
    assert item.prompt is not None and item.answer is not None
    assert item.prompt + item.answer == item.text and item.answer.strip() == "4"
    assert (item.question, item.choices, item.label) == (None, (), None)


def test_question_and_answer_become_a_prompt(tmp_path: Path) -> None:
    item = one(tmp_path / "a.jsonl", {"question": "Why {so}?", "answer": "Because."})
    assert (item.prompt, item.answer) == ("Question: Why {so}?\nAnswer:", " Because.")
    assert item.text == "Question: Why {so}?\nAnswer: Because."


def test_multiple_choice_has_no_prompt_and_its_text_ends_in_gold(tmp_path: Path) -> None:
    item = one(tmp_path / "a.jsonl", {"question": "Hot?", "choices": ["ice", "fire"], "answer": 1})
    assert item == Item(text="Hot? fire", question="Hot?", choices=("ice", "fire"), label=1)


@pytest.mark.parametrize(
    "shape", [{"prompt": "p", "answer": "a"}, {"question": "q", "answer": 0, "choices": ["a", "b"]}]
)
def test_text_beside_another_shape_is_the_calibration_text(tmp_path: Path, shape: dict[str, Any]) -> None:
    without, item = one(tmp_path / "a.jsonl", shape), one(tmp_path / "b.jsonl", {**shape, "text": "own"})
    assert item.text == "own" != without.text
    assert (item.prompt, item.answer, item.choices, item.label) == (
        without.prompt,
        without.answer,
        without.choices,
        without.label,
    )


def arc(texts: list[str], labels: list[str]) -> dict[str, list[str]]:
    return {"text": texts, "label": labels}


CHOICES_ANSWER_LABEL: list[tuple[Any, Any, int]] = [
    (["x", "y", "z"], 2, 2),
    (["x", "y", "z"], 2.0, 2),
    (["x", "y", "z"], "2", 2),
    (["x", "y", "z"], "C", 2),
    (["x", "y", "z"], "c", 2),
    (["x", "y", "z"], " z ", 2),
    (["3", "1", "2"], "2", 2),  # a choice's text comes before an index
    (["3", "1", "2"], 1, 1),  # a number is never a text
    (["B", "A", "C"], "A", 1),  # nor is a letter, where it is a choice's text
    (arc(["x", "y", "z"], ["A", "B", "C"]), "C", 2),
    (arc(["x", "y", "z"], ["1", "2", "3"]), "3", 2),
    (arc(["x", "y", "z"], ["A", "B", "C"]), "2", 2),
    (arc(["x", "y", "z"], ["1", "2", "3"]), "C", 2),
    (arc(["x", "y", "z"], ["1", "2", "3"]), "z", 2),
    (arc(["C", "O", "N"], ["A", "B", "C"]), "C", 2),  # as in ARC: labels come before texts
]


@pytest.mark.parametrize(("choices", "answer", "label"), CHOICES_ANSWER_LABEL)
def test_gold_choice(tmp_path: Path, choices: Any, answer: Any, label: int) -> None:
    item = one(tmp_path / "a.jsonl", {"question": "?", "choices": choices, "answer": answer})
    assert item.label == label
    assert item.text == f"? {item.choices[label]}"


@pytest.mark.parametrize(("choices", "answer", "label"), [c for c in CHOICES_ANSWER_LABEL if isinstance(c[1], str)])
def test_gold_choice_in_a_table(tmp_path: Path, choices: Any, answer: str, label: int) -> None:
    item = one(tmp_path / "a.csv", {"question": "?", "choices": json.dumps(choices), "answer": answer})
    assert item.label == label
    assert item.text == f"? {item.choices[label]}"


def test_structs_in_parquet_are_choices(tmp_path: Path) -> None:
    row = {"question": "?", "choices": arc(["x", "y"], ["A", "B"]), "answer": "B"}
    assert one(tmp_path / "a.parquet", row) == Item(text="? y", question="?", choices=("x", "y"), label=1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"words": "a", "label": 1},
            ["wrong columns: words, label", "question + choices + answer", "prompt + answer", "text"],
        ),
        ({"goal": "a", "sol1": "b", "sol2": "c", "label": 1}, ["wrong columns", "columns of piqa", "piqa=PATH"]),
        ({"text": 5}, ["text is 5, a int; it must be a string"]),
        ({"prompt": "2+2=", "answer": [4]}, ["answer is [4]", "must be a string"]),
        ({"question": "?", "choices": ["a"], "answer": 0}, ["1 choices; at least 2"]),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, ["answer 2 is none", "index 0 to 1", "A to B"]),
        ({"question": "?", "choices": ["a", "b"], "answer": -2}, ["answer -2 is none"]),
        ({"question": "?", "choices": ["a", "b"], "answer": "D"}, ["answer 'D' is none"]),
        ({"question": "?", "choices": ["a", "b"], "answer": "ä"}, ["answer 'ä' is none"]),
        ({"question": "?", "choices": ["a", "b"], "answer": True}, ["answer True is none"]),
        ({"question": "?", "choices": ["a", "b"], "answer": 0.5}, ["answer 0.5 is none"]),
        ({"question": "?", "choices": arc(["a", "b"], ["1", "2"]), "answer": "0"}, ["answer '0'", "label (1, 2)"]),
        ({"question": "?", "choices": arc(["a", "b"], ["A"]), "answer": "A"}, ["1 labels for 2 choices"]),
        ({"question": "?", "choices": ["a", " "], "answer": 0}, ["choice 2 is blank"]),
        ({"question": "?", "choices": ["a", 3], "answer": 0}, ["choice 2 is 3", "must be a string"]),
        ({"question": "?", "choices": "a, b", "answer": 0}, ["choices 'a, b': not JSON"]),
        ({"question": "?", "choices": {"a": 1}, "answer": 0}, ["choices {'a': 1}; allowed"]),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: dict[str, Any], said: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "fine"}, row])
    message = refusal(lambda: everything(path))
    assert message.startswith(f"{path} line 2: ")
    for part in said:
        assert part in message


# Rows that don't count


@pytest.mark.parametrize(
    "row",
    [
        {"text": None},
        {"text": " \n"},
        {"text": float("nan")},
        {"prompt": "p", "answer": ""},
        {"prompt": None, "answer": "a"},
        {"question": "q", "answer": None},
        {"question": "?", "choices": ["a", "b"], "answer": None},
        {"question": "?", "choices": ["a", "b"], "answer": -1},
        {"question": "?", "choices": ["a", "b"], "answer": "-1"},
        {"question": "?", "choices": ["a", "b"], "answer": " "},
    ],
)
def test_blank_and_unlabelled_rows_are_dropped_and_counted(
    tmp_path: Path, row: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS, row])
    assert len(everything(path)) == len(ROWS)
    assert "dropped 1 of 11 rows" in caplog.text
    path = write(tmp_path / "b.jsonl", [row])
    assert (
        refusal(lambda: everything(path))
        == f"{path}: every row is blank or without a label; at least one must have text"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.json", ""), ("a.json", "[]"), ("a.csv", "text\n"), ("a.csv", ""), ("a.txt", " \n\n")],
)
def test_an_empty_file_is_no_task(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert refusal(lambda: everything(path)).startswith(f"{path}: no rows")


# Broken files


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl line 2: broken JSON", "column"]),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', ["a.jsonl line 2: got a list; allowed: an object"]),
        ("a.json", b'[{"text": "a"},\n{"text"]', ["a.json line 2: broken JSON"]),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', ["a.json line 2: broken JSON", "must be named .jsonl"]),
        ("a.json", b'{"text": "a"}', ["top level is an object; allowed: a list of objects"]),
        ("a.json", b'[{"text": "a"}, null]', ["a.json row 2: got null"]),
        ("a.csv", b"text,n\na,1\nb,c,2\n", ["a.csv line 3: 3 cells under 2 columns (text, n)"]),
        ("a.csv", b'text\n"a\n', ["a.csv line 2: broken table"]),
        ("a.txt", b"fine\n\xff\n", ["a.txt line 2: byte 0xff isn't UTF-8"]),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}\n', ["a.jsonl line 2: byte 0xe9 isn't UTF-8"]),
        ("a.parquet", b"version https://git-lfs", ["a.parquet: not a readable parquet file"]),
        ("a.xlsx", b"", ["can't read files of type '.xlsx'", ".jsonl", ".parquet"]),
        ("a", b"", ["can't read files of type ''"]),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, said: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(lambda: everything(tmp_path / name))
    for part in said:
        assert part in message


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(lambda: everything(path))


# The split by seed


@given(num=st.integers(2, 60), seed=st.integers(0, 1000), fraction=st.floats(0.01, 0.99), repeats=st.integers(1, 3))
def test_split_keeps_all_rows_and_shares_no_text(num: int, seed: int, fraction: float, repeats: int) -> None:
    items = [Item(text=f"row {i}") for i in range(num)] * repeats
    train, test = (
        tasks._split(items, Path("x"), split, seed=seed, test_fraction=fraction) for split in ("train", "test")
    )
    assert train and test
    assert sorted(item.text for item in train + test) == sorted(item.text for item in items)
    assert not {item.text for item in train} & {item.text for item in test}
    assert abs(len(test) / repeats - num * fraction) <= 1


def test_split_follows_the_seed(tmp_path: Path) -> None:
    spec = f"mine={write(tmp_path / 'a.jsonl', [{'text': str(i)} for i in range(100)])}"
    test = load_items(spec, "test", seed=1)
    assert load_items(spec, "test", seed=1) == test
    assert load_items(spec, "test", seed=2) != test
    assert len(test) == 20
    assert len(load_items(spec, "test", test_fraction=0.5)) == 50
    assert [item.text for item in load_items(spec, "train")] != sorted(
        (item.text for item in load_items(spec, "train")), key=int
    )


@pytest.mark.parametrize("times", [1, 5])
def test_one_text_goes_to_train_and_test_is_refused(tmp_path: Path, times: int) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "alone"}] * times)
    assert len(load_items(f"mine={path}", "train")) == times
    assert "only one text, kept for train" in refusal(lambda: load_items(f"mine={path}", "test"))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_test_fraction_is_checked(tmp_path: Path, fraction: float) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    message = refusal(lambda: load_items(f"mine={path}", "test", test_fraction=fraction))
    assert "allowed: above 0 and below 1" in message


# Folders


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("train.csv", "test.parquet"),
        ("train.json", "validation.json"),
        ("train.txt", "dev.txt"),
        ("plain_text_train_0000.jsonl", "plain_text_test_0000.jsonl"),
        ("main-Train-00000-of-00001-26538eb75c618d24.jsonl", "main-valid-00000-of-00001-56538eb75c618d24.jsonl"),
    ],
)
def test_a_folder_has_its_own_split(tmp_path: Path, train: str, test: str) -> None:
    for name, text in ((train, "learn"), (test, "check")):
        if name.endswith("txt"):
            (tmp_path / name).write_text(text)
        else:
            write(tmp_path / name, [{"text": text}])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "training_notes.txt").write_text("not data")
    assert load_items(f"mine={tmp_path}", "train") == [Item(text="learn")]
    assert load_items(f"mine={tmp_path}", "test") == [Item(text="check")]


def test_shards_come_in_order_and_test_goes_before_validation(tmp_path: Path) -> None:
    for i in (1, 0, 2):
        write(tmp_path / f"train-0000{i}-of-00003.parquet", [{"text": f"{i}a"}, {"text": f"{i}b"}])
    write(tmp_path / "validation.jsonl", [{"text": "no"}])
    write(tmp_path / "test.jsonl", [{"text": "yes"}])
    write(tmp_path / "overlap-train-test.parquet", [{"text": "of neither"}])
    assert [item.text for item in load_items(f"mine={tmp_path}", "train")] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert load_items(f"mine={tmp_path}", "test") == [Item(text="yes")]


def test_a_file_named_by_the_word_alone_goes_first(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "train_old.jsonl", [{"text": "old"}])
    write(tmp_path / "train-test-overlap.jsonl", [{"text": "both"}])
    assert len(load_items(f"mine={tmp_path}", "train")) == 8


def test_a_folder_of_train_only_is_split_by_seed(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    assert everything(tmp_path) == everything(tmp_path / "train.jsonl")
    assert len(load_items(f"mine={tmp_path}", "test")) == 2


def test_a_folder_without_train_trains_on_validation(tmp_path: Path) -> None:
    write(tmp_path / "validation.jsonl", [{"text": "learn"}])
    write(tmp_path / "test.jsonl", [{"text": "check"}])
    assert load_items(f"mine={tmp_path}", "train") == [Item(text="learn")]
    assert load_items(f"mine={tmp_path}", "test") == [Item(text="check")]


def test_a_test_part_without_labels_gives_way_to_validation(tmp_path: Path) -> None:
    row = {"question": "?", "choices": ["a", "b"]}
    for part, answer in (("train", 0), ("test", -1), ("validation", 1)):
        write(tmp_path / f"{part}.jsonl", [{**row, "answer": answer}])
    assert [item.label for item in load_items(f"mine={tmp_path}", "test")] == [1]
    assert [item.label for item in load_items(f"mine={tmp_path}", "train")] == [0]
    (tmp_path / "validation.jsonl").unlink()
    assert "without a label" in refusal(lambda: load_items(f"mine={tmp_path}", "test"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ["no file of a split", "the folder has: nothing", "accepted: train.*", ".parquet"]),
        (["notes.txt", "train.gz"], ["no file of a split", "the folder has: notes.txt, train.gz"]),
        (["test.jsonl"], ["only a test part; add train.*"]),
        (["train.jsonl", "train.csv"], ["train.csv, train.jsonl are all named train", "keep one"]),
        (["easy_train.jsonl", "hard_train.jsonl"], ["easy_train.jsonl, hard_train.jsonl are all named train"]),
    ],
)
def test_a_folder_that_is_no_task_says_what_is_there(tmp_path: Path, names: list[str], said: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text('{"text": "a"}\n')
    message = refusal(lambda: load_items(f"mine={tmp_path}", "train"))
    assert str(tmp_path) in message
    for part in said:
        assert part in message


# Specs


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gms8k", ["unknown task 'gms8k'", "did you mean 'gsm8k'", "arithmetic", "gms8k=PATH"]),
        ("mine=", ["nothing after '='"]),
        ("mine=/no/such/file.jsonl", ["'mine'", "/no/such/file.jsonl doesn't exist"]),
        ("", ["task name ''", "letters, digits"]),
        ("../x=/tmp", ["task name '../x'", "NAME=PATH"]),
        (".x=/tmp", ["task name '.x'"]),
        ("a b=/tmp", ["task name 'a b'"]),
        ("data/train.jsonl", ["task name 'data/train.jsonl'", "NAME=PATH"]),
    ],
)
def test_a_bad_spec_says_why(spec: str, said: list[str]) -> None:
    message = refusal(lambda: parse_spec(spec))
    for part in said:
        assert part in message


def test_specs_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a=b.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert parse_spec("my_task-1.0=a=b.jsonl") == TaskSpec(name="my_task-1.0", path=Path("a=b.jsonl"))
    assert spec_source("mine=a=b.jsonl") == str(path)
    assert spec_source("arithmetic") == "builtin"
    assert spec_source(TaskSpec(name="gsm8k")) == "hub:openai/gsm8k@main"
    assert spec_source("boolq") == "hub:google/boolq"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_spec("mine=~/a=b.jsonl").path == path


def test_unknown_split_is_refused() -> None:
    message = refusal(lambda: load_items("arithmetic", "validation"))
    assert "unknown split 'validation'" in message and "test, train" in message


def test_every_data_set_is_looked_at() -> None:
    assert {name for name, task in hub.TASKS.items() if not task.part} == set(UPSTREAM)  # of code: test_code.py


def test_no_name_is_known_twice() -> None:
    assert len(set(tasks.KNOWN)) == len(tasks.KNOWN) == len(builtin.TASKS) + len(hub.TASKS)


@pytest.mark.parametrize("name", builtin.TASKS)
def test_built_in_tasks(name: str) -> None:
    train, test = load_items(name, "train"), load_items(name, "test")
    assert (len(train), len(test)) == (1000, 200)
    assert not {item.prompt for item in train} & {item.prompt for item in test}
    assert all(item.prompt and item.answer and item.text == item.prompt + item.answer for item in train)
    assert load_items(name, "test", seed=1) != test


# The Hub: for each data set an upstream row, its test split, and the item to be made of it.

OBQA = {"question_stem": "Warm is", "choices": arc(["ice", "fire"], ["A", "B"]), "answerKey": "B"}
SENTENCE = "Ann paid Bo, so _ was poor."
UPSTREAM: dict[str, tuple[str, dict[str, Any], Item]] = {
    "gsm8k": (
        "test",
        {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        Item(
            text="Question: How many?\n1 + 1 = <<1+1=2>>2\n#### 2",
            prompt="Question: How many?\nAnswer:",
            answer=" 1 + 1 = <<1+1=2>>2\n#### 2",
        ),
    ),
    "arc_easy": (
        "test",
        {"question": "Hot?", "choices": arc(["C", "O", "N"], ["A", "B", "C"]), "answerKey": "C"},
        Item(text="Hot? N", question="Hot?", choices=("C", "O", "N"), label=2),
    ),
    "arc_challenge": (
        "test",
        {"question": "Hot?", "choices": arc(["x", "y"], ["1", "2"]), "answerKey": "2"},
        Item(text="Hot? y", question="Hot?", choices=("x", "y"), label=1),
    ),
    "openbookqa": (
        "test",
        {**OBQA, "fact1": "fire burns The wood"},
        Item(text="Fire burns the wood. Warm is fire", question="Warm is", choices=("ice", "fire"), label=1),
    ),
    "piqa": (
        "validation",
        {"goal": "To sit", "sol1": "use A chair", "sol2": "fly", "label": 0},
        Item(text="To sit Use a chair", question="To sit", choices=("use A chair", "fly"), label=0),
    ),
    "hellaswag": (
        "validation",
        {"ctx": "He runs", "endings": ["off.", "on.", "in.", "up."], "label": "3"},
        Item(text="He runs up.", question="He runs", choices=("off.", "on.", "in.", "up."), label=3),
    ),
    "winogrande": (
        "validation",
        {"sentence": SENTENCE, "option1": "Ann", "option2": "Bo", "answer": "1"},
        Item(
            text="Ann paid Bo, so Ann was poor.",
            question="Ann paid Bo, so",
            choices=("Ann was poor.", "Bo was poor."),
            label=0,
        ),
    ),
    "boolq": (
        "validation",
        {"question": "is the sky Blue", "passage": "It is.", "answer": True},
        Item(
            text="It is.\nQuestion: Is the sky blue? Yes",
            question="It is.\nQuestion: Is the sky blue?",
            choices=("no", "yes"),
            label=1,
        ),
    ),
    "wikitext2": ("test", {"text": " A line of text . \n"}, Item(text="A line of text .")),
}


@pytest.fixture
def load_dataset(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """A `datasets` whose data sets have the one row above; returns the list of calls."""
    calls: list[tuple[str, str | None, str]] = []
    by_source = {(task.path, task.config): UPSTREAM[name][1] for name, task in hub.TASKS.items() if not task.part}

    def load(path: str, name: str | None = None, *, split: str) -> list[dict[str, Any]]:
        calls.append((path, name, split))
        return [by_source[path, name]]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    return calls


@pytest.mark.parametrize("name", UPSTREAM)
def test_hub_rows_become_the_papers_texts(name: str, load_dataset: list[tuple[str, str | None, str]]) -> None:
    test_split, _, item = UPSTREAM[name]
    assert load_items(name, "train") == load_items(name, "test") == [item]
    task = hub.TASKS[name]
    assert load_dataset == [(task.path, task.config, "train"), (task.path, task.config, test_split)]


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_columns_in_a_local_copy(name: str, tmp_path: Path) -> None:
    assert one(tmp_path / "a.jsonl", UPSTREAM[name][1], name) == UPSTREAM[name][2]


@pytest.mark.parametrize("name", ["gsm8k", "piqa", "winogrande", "boolq"])
def test_upstream_columns_in_a_table(name: str, tmp_path: Path) -> None:
    assert one(tmp_path / "a.csv", UPSTREAM[name][1], name) == UPSTREAM[name][2]


def test_our_columns_under_a_hub_name(tmp_path: Path) -> None:
    assert one(tmp_path / "a.jsonl", {"text": "mine"}, "piqa") == Item(text="mine")
    item = one(tmp_path / "a.jsonl", {"question": "?", "choices": ["a", "b"], "answer": 0}, "arc_easy")
    assert item == Item(text="? a", question="?", choices=("a", "b"), label=0)


def test_boolq_no_and_openbookqa_without_fact(tmp_path: Path) -> None:
    row = {**UPSTREAM["boolq"][1], "answer": False}
    assert one(tmp_path / "a.jsonl", row, "boolq").text.endswith("? No")
    assert one(tmp_path / "a.jsonl", row, "boolq").label == 0
    assert one(tmp_path / "b.jsonl", OBQA, "openbookqa").text == "Warm is fire"
    assert one(tmp_path / "b.jsonl", {**OBQA, "fact1": None}, "openbookqa").text == "Warm is fire"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("piqa", {"goal": 3}, "column 'goal' is int; allowed: str"),
        ("piqa", {"label": 2}, "answer 2 is none of the choices"),
        ("winogrande", {"answer": "3"}, "answer '3'; allowed: 1 or 2"),
        ("winogrande", {"sentence": "no blank"}, "no blank '_'"),
        ("boolq", {"answer": "maybe"}, "answer 'maybe'; allowed: true or false"),
        ("hellaswag", {"endings": None, "label": "4", "ctx": None}, "without a label"),
        ("hellaswag", {"label": ""}, "without a label"),
    ],
)
def test_bad_upstream_rows(tmp_path: Path, name: str, change: dict[str, Any], said: str) -> None:
    message = refusal(lambda: one(tmp_path / "a.jsonl", {**UPSTREAM[name][1], **change}, name))
    assert str(tmp_path / "a.jsonl") in message and said in message


def test_wikitext_has_no_blank_lines_and_no_headings(tmp_path: Path) -> None:
    lines = ["", " = Lobster = \n", "", " First line . \n", " Second line . \n", "", " = = Habit = = \n", " Third . \n"]
    items = everything(write(tmp_path / "a.jsonl", [{"text": line} for line in lines]), "wikitext2")
    assert sorted(item.text for item in items) == ["First line .\nSecond line .", "Third ."]
    items = everything(write(tmp_path / "b.jsonl", [{"text": line} for line in (" a b = c \n", " d \n")]), "wikitext2")
    assert sorted(item.text for item in items) == ["a b = c", "d"]


def test_wikitext_that_is_no_text_is_refused(tmp_path: Path) -> None:
    message = refusal(lambda: everything(write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": 5}]), "wikitext2"))
    assert "a.jsonl line 2: text is 5, a int" in message


def test_a_local_copy_is_evaluated_where_the_hub_has_labels(tmp_path: Path) -> None:
    for part, label in (("train", 0), ("validation", 1), ("test", 0)):
        write(tmp_path / f"plain_text_{part}_0000.jsonl", [{**UPSTREAM["piqa"][1], "label": label}])
    assert [item.label for item in load_items(f"piqa={tmp_path}", "test")] == [1]
    (tmp_path / "plain_text_validation_0000.jsonl").unlink()
    assert [item.label for item in load_items(f"piqa={tmp_path}", "test")] == [0]


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal(lambda: load_items("gsm8k", "train"))
    assert 'pip install "seap[hub]"' in message and "'gsm8k'" in message


def test_without_network_a_local_copy_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refusal(lambda: load_items("gsm8k", "train"))
    for part in ("couldn't fetch hub:openai/gsm8k@main split train", "Couldn't reach", "gsm8k=PATH"):
        assert part in message


# Real data, where it is: rows counted in the files by hand, gold answers checked against the upstream columns.


@pytest.mark.parametrize(
    ("name", "folder", "num_train", "num_test"),
    [
        ("piqa", "piqa", 16113, 1838),
        ("boolq", "boolq", 9427, 3270),
        ("openbookqa", "obqa", 4957, 500),
        ("gsm8k", "gsm8k", 7473, 1319),
        ("arc_challenge", "ai2_arc", 1119, 1172),
        ("arc_easy", "arc_easy", 2251, 2376),
        ("winogrande", "winogrande", 2558, 1267),
    ],
)
def test_local_copies(name: str, folder: str, num_train: int, num_test: int, caplog: pytest.LogCaptureFixture) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {SHARED / folder}")
    train, test = (load_items(f"{name}={SHARED / folder}", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (num_train, num_test)
    assert "dropped" not in caplog.text
    if name == "gsm8k":
        assert all(item.answer is not None and "\n#### " in item.answer for item in train + test)
    else:
        assert {item.label for item in test} >= {0, 1}
        golds = [item.choices[item.label] for item in train if item.label is not None]
        assert len(golds) == num_train
        assert all(gold.lower() in item.text.lower() for gold, item in zip(golds, train, strict=True))


def test_local_arc_row_whose_choice_is_a_letter() -> None:
    if not (SHARED / "ai2_arc").is_dir():
        pytest.skip(f"no {SHARED / 'ai2_arc'}")
    items = load_items(f"arc_challenge={SHARED / 'ai2_arc'}", "test")
    (item,) = (item for item in items if "C" in item.choices)
    assert item.choices[0] == "C" and item.label != 0


def test_local_wikitext() -> None:
    if not (SHARED / "wikitext2").is_dir():
        pytest.skip(f"no {SHARED / 'wikitext2'}")
    train, test = (load_items(f"wikitext2={SHARED / 'wikitext2'}", split) for split in ("train", "test"))
    assert train[0].text.startswith("Homarus gammarus , known as the European lobster")
    lines = [line for item in train + test for line in item.text.split("\n")]
    assert all(line.strip() for line in lines)
    assert not any(line.startswith("= ") and line.endswith(" =") for line in lines)
    assert len(test) > 500
