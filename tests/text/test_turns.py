"""Conversations: the public shapes of such data become turns, and what can't be read is named."""

import json
from pathlib import Path
from typing import Any

import paths
import pytest

from seap.errors import UserError
from seap.text import items
from seap.text.items import Item, to_items
from seap.text.memory import in_memory, items_in_memory
from seap.text.readers import Row
from seap.text.tasks import TaskSpec, load_items, spec_source, with_columns
from seap.text.turns import Turn, plain, said_by_user, turns_of

CASES = paths.SHARED / "cases"


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    items.say_once.cache_clear()


def one(row: dict[str, Any]) -> Item:
    (item,) = to_items([Row("mine line 1", row)], "mine")
    return item


SAID = [("user", "When?"), ("assistant", "At noon.")]
MESSAGES = [{"role": role, "content": text} for role, text in SAID]
SHAPES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "messages": ({"messages": MESSAGES}, SAID),
    "messages as JSON": ({"messages": json.dumps(MESSAGES)}, SAID),
    "sharegpt": ({"conversations": [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "At noon."}]}, SAID),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "When?"}]}, MESSAGES[1]]}, SAID),
    "nested parts": (
        {"messages": [{"role": "user", "content": [{"content": [{"text": "Wh"}, None, "en?"]}]}, MESSAGES[1]]},
        SAID,
    ),
    "nulls of a table": ({"messages": [{**m, "tool_calls": None, "name": None} for m in MESSAGES]}, SAID),
    "system beside": ({"system": "Be kind.", "messages": MESSAGES}, [("system", "Be kind."), *SAID]),
    "alpaca": ({"instruction": "When?", "input": "", "output": "At noon."}, SAID),
    "alpaca with input": ({"instruction": "When", "input": "does it come?", "output": "x"}, [
        ("user", "When\ndoes it come?"), ("assistant", "x")]),
    "alpaca's relatives": (
        {"instruction": "When?", "output": "At noon.", "system": "Be kind.", "history": [["a", "b"]]},
        [("system", "Be kind."), ("user", "a"), ("assistant", "b"), *SAID],
    ),
    "prompt and completion": ({"prompt": "When?", "completion": "At noon."}, SAID),
    "lists of messages": ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, SAID),
    "input and output": ({"input": "When?", "output": "At noon."}, SAID),
    "question and answer": ({"question": "When?", "answer": "At noon."}, SAID),
    "question in a context": (
        {"context": "It came.", "question": "When?", "answer": "At noon."},
        [("user", "It came.\nWhen?"), ("assistant", "At noon.")],
    ),
    "orca": (
        {"system_prompt": "Be kind.", "question": "When?", "response": "At noon."},
        [("system", "Be kind."), *SAID],
    ),
    "an instruction and a question": (
        {"instruction": "Be brief.", "question": "When?", "output": "At noon."},
        [("user", "Be brief.\nWhen?"), ("assistant", "At noon.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_public_shapes_become_turns(name: str, caplog: pytest.LogCaptureFixture) -> None:
    row, said = SHAPES[name]
    item = one(row)
    assert [(turn.role, turn.content) for turn in item.turns] == said
    assert item.answer is not None and item.answer.strip() == said[-1][1]
    assert item.prompt is not None and item.text == item.prompt + item.answer
    assert "left out" not in caplog.text


def test_tools_and_calls_reach_the_template() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "CET", "unit": None}}}
    row = {
        "messages": [
            MESSAGES[0],
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "12:00", "tool_call_id": "1"},
            MESSAGES[1],
        ],
        "tools": [{"type": "function", "function": {"name": "clock"}}],
    }
    item = one(row)
    assert item.turns[1].message["tool_calls"][0]["function"]["arguments"] == {"zone": "CET"}
    assert item.turns[2].message == {"role": "tool", "content": "12:00", "tool_call_id": "1"}
    assert json.loads(item.tools) == row["tools"]
    assert "clock" in item.text and item.answer == " At noon."


BAD: list[tuple[Any, str]] = [
    ("hello", "messages 'hello': not JSON"),
    ([1], "message 1 is 1; allowed"),
    ([{"role": "wizard", "content": "x"}], "message 1 has the role 'wizard'; allowed: system, developer, user"),
    ([MESSAGES[0], {"role": "assistant", "content": 5}], "message 2 says 5, a int"),
    (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}],
        "message 1 has a part of type 'input_audio'; only text",
    ),
]


@pytest.mark.parametrize(("messages", "reason"), BAD)
def test_bad_rows_are_named(messages: Any, reason: str) -> None:
    with pytest.raises(UserError) as error:
        one({"messages": messages})
    assert str(error.value).startswith("mine line 1: ") and reason in str(error.value)


def test_blank_conversations_are_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"messages": []},
        {"messages": None},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": MESSAGES},
    ]
    assert len(to_items([Row(f"line {i}", row) for i, row in enumerate(rows)], "mine")) == 1
    assert "dropped 3 of 4 rows" in caplog.text


def test_columns_without_a_place_are_named(caplog: pytest.LogCaptureFixture) -> None:
    one({"messages": MESSAGES, "id": "7", "score": 2})
    assert "left out: id, score (read: messages)" in caplog.text


def test_plain_turns_are_what_the_server_asks() -> None:
    turns = turns_of([{"role": "system", "content": "Be kind."}, *MESSAGES])
    text, spans = plain(turns)
    assert text == "System: Be kind.\nUser: When?\nAssistant: At noon."
    assert [text[start:end] for start, end in spans] == [" At noon."]
    assert text.startswith(plain(turns[:-1], cue=True)[0])
    assert plain(turns[1:]) == ("When? At noon.", ((5, 14),)) and plain(turns[1:2], cue=True) == ("When?", ())
    assert said_by_user(turns) == "When?"
    assert turns[0] == Turn("system", "Be kind.")


def test_a_conversation_and_its_beginning_are_never_on_both_sides(tmp_path: Path) -> None:
    """Logs hold a conversation again with every turn that is added; a test must not hold what calibration has read."""
    rows = []
    for i in range(20):
        talk = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
        more = [{"role": "user", "content": "and then?"}, {"role": "assistant", "content": f"then {i}"}]
        rows += [{"messages": talk}, {"messages": talk + more}]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    parts = [load_items(TaskSpec(name="log", path=path), split) for split in ("train", "test")]
    openings = [{item.turns[0].content for item in part} for part in parts]
    assert not openings[0] & openings[1] and sum(map(len, openings)) == 20


@pytest.mark.skipif(not CASES.is_dir(), reason="the workshop's cases aren't here")
@pytest.mark.parametrize(
    "name",
    ["d1_messages.jsonl", "d2_sharegpt.jsonl", "d3_alpaca.jsonl", "d4_promptcompletion.jsonl", "d5_inputoutput.jsonl",
     "d7.jsonl.gz", "d13_hfrepo", "d33_saved", "e1_context_qa.jsonl", "d15_mmlu.csv"],
)  # fmt: skip
def test_data_that_was_refused_is_read(name: str) -> None:
    spec = TaskSpec(name="mine", path=CASES / name)
    train, test = load_items(spec, "train"), load_items(spec, "test")
    assert len(train) > len(test) > 1
    assert not {item.text for item in train} & {item.text for item in test}
    if name.split("_")[0] in ("d1", "d2", "d3", "d4", "d5", "e1"):
        assert all(item.turns[-1].role == "assistant" for item in train)


def rows_written(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


ROWS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(20)
]


def saved_as(kind: str, folder: Path) -> Path:
    """The same conversations in one of the forms in which they come."""
    import gzip

    import pyarrow
    import pyarrow.parquet

    lines = "\n".join(map(json.dumps, ROWS)).encode()
    path = folder / kind
    if kind.endswith(".gz"):
        path.write_bytes(
            gzip.compress(lines[:300]) + gzip.compress(lines[300:])
        )  # two members, as appending makes them
    elif kind.endswith(".zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(lines)
    elif kind == "hub clone":
        (path / "data").mkdir(parents=True)
        for name, part in (("train-00000-of-00001", ROWS[:15]), ("test-00000-of-00001", ROWS[15:])):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path / "data" / f"{name}.parquet")
    elif kind == "folders of splits":
        for name, part in (("train", ROWS[:15]), ("test", ROWS[15:])):
            (path / name).mkdir(parents=True)
            rows_written(path / name / "0.jsonl", part)
    else:
        datasets = pytest.importorskip("datasets")
        whole = datasets.Dataset.from_list(ROWS)
        whole = (
            datasets.DatasetDict(train=whole.select(range(15)), test=whole.select(range(15, 20)))
            if "dict" in kind
            else whole
        )
        whole.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["a.jsonl.gz", "a.jsonl.zst", "hub clone", "folders of splits", "saved", "saved dict"])
def test_the_forms_in_which_data_comes_are_read_alike(kind: str, tmp_path: Path) -> None:
    spec = TaskSpec(name="mine", path=saved_as(kind, tmp_path))
    train, test = load_items(spec, "train"), load_items(spec, "test")
    texts = [{item.text for item in part} for part in (train, test)]
    assert texts[0] | texts[1] == {f"q{i} a{i}" for i in range(20)} and not texts[0] & texts[1]
    if kind in ("hub clone", "folders of splits", "saved dict"):
        assert texts[1] == {f"q{i} a{i}" for i in range(15, 20)}


def test_files_that_arent_there_or_cut_off_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(UserError, match=r"train.parquet: .*only points to its content; run there: git lfs pull"):
        load_items(TaskSpec(name="mine", path=tmp_path), "train")
    whole = saved_as("a.jsonl.gz", tmp_path)
    for name, content in (("cut.jsonl.gz", whole.read_bytes()[:-20]), ("b.jsonl.gz", b"no"), ("c.jsonl.zst", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: "):
            load_items(TaskSpec(name="mine", path=tmp_path / name), "train")
    for config in ("one", "two"):
        (tmp_path / "many" / config).mkdir(parents=True)
        rows_written(tmp_path / "many" / config / "train.jsonl", ROWS)
    with pytest.raises(UserError, match="one, two each have files of a split; give one of these folders"):
        load_items(TaskSpec(name="mine", path=tmp_path / "many"), "train")


def test_columns_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_written(
        tmp_path / "a.jsonl", [{"goal": f"g{i}", "meta": {"sol": f"s{i}"}, "question": "odd"} for i in range(9)]
    )
    (spec,) = with_columns([f"mine={tmp_path / 'a.jsonl'}"], ["question=goal,answer=meta.sol"])
    items_found = load_items(spec, "train")
    assert items_found[0].prompt is not None and items_found[0].prompt.startswith("Question: g")
    assert items_found[0].turns[0].content.startswith("g")
    with pytest.raises(
        UserError, match=r"line 1: --columns answer=x: no such column; the row has goal, meta, question"
    ):
        load_items(f"mine={tmp_path / 'a.jsonl'}[question=goal,answer=x]", "train")
    with pytest.raises(UserError, match="gsm8k is a task that has its own"):
        with_columns(["gsm8k"], ["question=goal"])
    with pytest.raises(UserError, match="must be FIELD=COLUMN"):
        with_columns(["a=b"], ["question"])
    assert spec_source(spec).endswith("a.jsonl[question=goal,answer=meta.sol]")


def test_any_data_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path: str, config: str | None) -> Any:
        asked.append((path, config))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = "mine=hub:owner/name:small"
    train, test = load_items(spec, "train"), load_items(spec, "test")
    assert len(train) == 16 and len(test) == 4 and asked[0] == ("owner/name", "small")
    assert spec_source(spec) == "hub:owner/name:small"
    with pytest.raises(UserError, match="give hub:owner/name"):
        load_items("mine=hub:nowhere", "train")


def test_examples_in_memory() -> None:
    datasets = pytest.importorskip("datasets")
    talk = [row["messages"] for row in ROWS]
    whole = datasets.Dataset.from_list(ROWS)
    parts = datasets.DatasetDict(train=whole.select(range(15)), test=whole.select(range(15, 20)))
    texts = [item.text for item in items_in_memory("mine", talk)]
    assert texts == [item.text for item in items_in_memory("mine", whole)] == [f"q{i} a{i}" for i in range(20)]
    assert [item.text for item in items_in_memory("mine", texts)] == texts
    assert in_memory("gsm8k gsm8k".split()) == ["gsm8k", "gsm8k"]
    (unnamed,) = in_memory(parts)
    assert [item.text for item in items_in_memory(unnamed, in_memory(parts)[unnamed])] == texts[:15]  # no test text
    assert list(in_memory(talk)) == list(in_memory(whole)) == ["data"]
    for odd, reason in (("one", "put it in a list"), ([5], "mine example 1 is 5, a int"), (7, "mine is a int")):
        with pytest.raises(UserError, match=reason):
            items_in_memory("mine", odd)
