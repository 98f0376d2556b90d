"""Data files as people bring them: encodings, delimiters, halves of characters, depth, size, and plain damage."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import paths
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seap.errors import UserError
from seap.text import decoding
from seap.text.tasks import load_examples, load_items

CASES = paths.SHARED / "cases"
ROWS = [{"question": f"Wer {i}?", "answer": f"Bär {i}", "context": "x"} for i in range(6)]


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    decoding.say_once.cache_clear()


def texts(path: Path) -> list[str]:
    return sorted(item.text for item in load_items(f"t={path}", "train") + load_items(f"t={path}", "test"))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        texts(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_encodings_with_a_mark_are_read_and_others_named(tmp_path: Path, encoding: str, ending: str) -> None:
    whole = {
        "jsonl": "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in ("Bär", "Öl")),
        "json": json.dumps([{"text": "Bär"}, {"text": "Öl"}], ensure_ascii=False),
        "csv": "text\nBär\nÖl\n",
        "txt": "Bär\n\nÖl\n",
    }[ending]
    path = tmp_path / f"a.{ending}"
    path.write_bytes(whole.encode(encoding))
    if encoding in ("utf-16-le", "utf-16-be"):
        assert "line 1: byte 0x" in refusal(path) and "save the file as UTF-8" in refusal(path)
    else:
        assert texts(path) == ["Bär", "Öl"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "sep={}\n"])
def test_a_table_is_read_by_the_delimiter_of_its_heading(
    tmp_path: Path, delimiter: str, ending: str, mark: str
) -> None:
    path = tmp_path / f"a.{ending}"
    rows = [["prompt", "answer"], ['"one, two; three|four"', "5"], ["one", "2"]]
    path.write_text(mark.format(delimiter) + "\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    assert texts(path) == ["one 2", "one, two; three|four 5"]


def test_one_column_has_no_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"a;b;c"\nd|e\n')
    assert texts(tmp_path / "a.csv") == ["a;b;c", "d|e"]


def test_a_list_in_a_file_of_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(" \n" + json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert texts(path) == ["a", "b"]
    path.write_text('[{"text": "a"},\n{"text" 1}]')
    assert f"{path} line 2: broken JSON" in refusal(path)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_halves_of_characters_are_replaced_and_said_once(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        '{"text": "fine \\ud83d\\ude00"}',
        '{"text": "bad \\ud83d"}',
        '{"text": "bad \\uDE00", "\\ud83d": ["\\ud83d"]}',
    ]
    path = tmp_path / f"a.{ending}"
    path.write_text("\n".join(rows) if ending == "jsonl" else f"[{','.join(rows)}]")
    assert texts(path) == ["bad �", "bad �", "fine 😀"]
    said = [r.message for r in caplog.records if "surrogate" in r.message]
    row = "line 2" if ending == "jsonl" else "row 2"
    assert len(said) == 1 and f"{path}: 2 rows" in said[0] and f"the first in {row}" in said[0]


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", f'{{"text": "a"}}\n{{"text": "b", "more": {DEEP}}}', "line 2: JSON nested too deeply; at most 100"),
        ("a.jsonl", '{"text": "b", "more": ' + "[" * 300 + "]" * 300 + "}", "line 1: JSON nested too deeply"),
        ("a.json", DEEP, "JSON nested too deeply"),
        ("a.csv", f'question,choices,answer\nx,"{DEEP}",1', "line 2: choices '[[["),
        ("a.jsonl", '{"text": "a"}\n{"text": ' + "1" * 5000 + "}", "line 2: a number of more digits"),
        ("a.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": "' + "1" * 5000 + '"}', "line 1: answer '1"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "line 1: column 'text' is there twice"),
        ("a.csv", "text,n,text\na,1,b", "a.csv: column 'text' is there twice"),
        ("a.csv", "text\nfine\na\0b\n", "line 3: byte 0x00, which no text has"),
        ("a.txt", "a\0b\n", "line 1: byte 0x00"),
        ("a.jsonl", '{"text": "a"}\n{"text": ["a"]}', "line 2: text is ['a'], a list; it must be a string"),
        ("a.jsonl", '{"text": "a"}\n{"text": true}', "line 2: text is True, a bool"),
        ("a.jsonl", '{"text": "a"}\n{"text": {"a": NaN}}', "line 2: text is {'a': nan}, a dict"),
        ("a.jsonl", '{"text": "a"}\nnull', "line 2: got null"),
        ("a.jsonl", '{"question": ["a"], "answer": "b"}', "line 1: question is ['a'], a list"),
        ("a.jsonl", '{"question": "a", "choices": "[1e999]", "answer": 0}', "line 1: 1 choices"),
        ("a.jsonl", '{"": "a"}', "line 1: wrong columns"),
    ],
)
def test_what_a_row_may_not_be_is_named_by_its_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    assert said in refusal(tmp_path / name)


def test_cells_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\n" + "x" * 1_000_000 + ",1\nshort,2\n")
    assert len(texts(tmp_path / "a.csv")[1]) == 1_000_000


def test_a_nameless_column_is_named_by_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(",text,\n0,a,x\n1,b,y\n")
    assert texts(tmp_path / "a.csv") == ["a", "b"]
    assert "left out: column 1, column 3 (read: text)" in caplog.text


# Size


def test_a_file_larger_than_may_be_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 3000)
    monkeypatch.setattr(decoding, "MOST_BYTES", 2000)
    assert "3,000 bytes of data when it is read; at most 2,000" in refusal(path)


def test_what_is_unpacked_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(decoding, "MOST_BYTES", 3_000_000)
    with gzip.open(path) as stream:
        with pytest.raises(UserError, match=r"a.gz: more than 3,000,000 bytes"):
            decoding.bounded(stream, path)
        assert stream.tell() < 5_000_000


def parquet_of(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", store_schema=False)
    return path


def repeated(value: str, times: int) -> pyarrow.Array:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * times, pyarrow.int32()), pyarrow.array([value]))


BIG = "x" * 100_000


@pytest.mark.parametrize(
    "columns",
    [
        {"text": repeated(BIG, 20_000)},
        {"text": repeated("x", 100), "c": pyarrow.array([[BIG] * 1000] * 5 + [["a"]] * 95)},
        {"text": repeated("x", 100), "s": pyarrow.array([{"a": {"b": BIG}}] * 100)},
        {"text": pyarrow.array(["x"] * 500_000), "n": pyarrow.array([None] * 500_000, pyarrow.int64())},
    ],
    ids=["text", "list", "struct", "rows"],
)
def test_parquet_that_unpacks_to_more_than_may_be(
    tmp_path: Path, columns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet_of(tmp_path / "a.parquet", columns)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(decoding, "MOST_BYTES", 9_000_000)
    assert "bytes of data when it is read; at most 9,000,000" in refusal(path)


def test_parquet_of_every_type_gives_plain_values(tmp_path: Path) -> None:
    columns = {
        "question": repeated("Hot?", 3),
        "choices": [{"text": ["ice", "fire"], "label": ["A", "B"]}] * 3,
        "answer": ["A", "B", None],
        "when": pyarrow.array([1, 2, None], pyarrow.timestamp("us")),
        "bytes": [b"\xff", None, b""],
        "map": pyarrow.array([[("a", 1)], None, []], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
    }
    path = parquet_of(tmp_path / "a.parquet", columns)
    assert texts(path) == ["Hot? fire", "Hot? ice"]


def test_lists_in_row_groups_of_their_own_dictionaries(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "choices": [f"wrong {i}", f"right {i}"], "answer": 1} for i in range(600)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    assert sorted(texts(path)) == sorted(f"{i}? right {i}" for i in range(600))


def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is neither a file nor a folder" in refusal(tmp_path / "pipe.jsonl")
    assert "is neither a file nor a folder" in refusal(tmp_path / "loop")
    assert "doesn't exist" in refusal(tmp_path / ("x" * 5000))
    with pytest.raises(UserError):
        load_examples(str(tmp_path / ("x" * 5000)))


# Damage: whatever is done to a good file, it is read or refused in a line that names it.


def good(path: Path) -> bytes:
    if path.suffix == ".parquet":
        parquet_of(path, {"question": [row["question"] for row in ROWS], "answer": [row["answer"] for row in ROWS]})
    elif path.suffix == ".csv":
        path.write_text("question,answer\n" + "\n".join(f'"{row["question"]}",{row["answer"]}' for row in ROWS))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    else:
        path.write_text("\n\n".join(row["question"] for row in ROWS))
    return path.read_bytes()


def damaged(data: bytes, seed: int) -> bytes:
    rng, found = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del found[place : place + rng.randint(1, 20)]
        elif kind == 1:
            found[place:place] = rng.randbytes(rng.randint(1, 4))
        elif kind == 2:
            found[place:place] = rng.choice(
                [b'"', b"[", b"{", b"\\ud83d", b"null", b"1e999", b"\0", b",", b"\n", b"NaN"]
            )
        else:
            found[place : place + 1] = bytes([rng.randrange(256)])
    return bytes(found)


def read_or_refused(path: Path, seed: int) -> None:
    path.write_bytes(damaged(good(path), seed))
    try:
        load_items(f"t={path}", "train")
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_in_one_line(
    ending: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read_or_refused(tmp_path_factory.getbasetemp() / f"damaged.{ending}", seed)


@pytest.mark.parametrize("seed", [774, 1, 2, 3])  # the first ended the process that read it, with pyarrow 26
def test_damaged_parquet_ends_nothing_but_its_reader(tmp_path: Path, seed: int) -> None:
    read_or_refused(tmp_path / "a.parquet", seed)


def test_cases_that_failed() -> None:
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    assert all("�" in text for text in texts(CASES / "d10b_surrogate_all.jsonl"))
    assert len(texts(CASES / "d17_array.jsonl")) > 30
    assert not any(";" in text for text in texts(CASES / "d6b_semicolon.csv"))
