"""From files to rows: every format that a task may come in, and the files of a folder that belong to a split.

A Row remembers where it stood, so that whoever rejects it can say so.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.files import BESIDE

SPLIT_WORDS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Row:
    """One example as its file has it: `where` is what an error calls it, `values` are its columns."""

    where: str
    values: dict[str, Any]


def read_rows(files: Iterable[Path]) -> list[Row]:
    """The rows of all files, in order. Raises UserError for an unknown type, a broken file, or no rows."""
    files = list(files)
    rows = [row for file in files for row in _reader_of(file)(file)]
    if not rows:
        raise UserError(f"{', '.join(map(str, files))}: no rows; an empty file can't be a task")
    return rows


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder, shards in sorted order; a split that isn't there has no entry.

    A file belongs to a split by the one split word among the words of its name: `train.csv`,
    `train-00000-of-00002.parquet`, `plain_text_train_0000.parquet`. Where a file is named by the word alone,
    the others are left out.
    """
    there = sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and not path.name.endswith(BESIDE)
    )
    files = [path for path in there if path.is_file() and path.suffix.lower() in READERS]
    found = {split: _files_of(split, files) for split in SPLIT_WORDS}
    if not any(found.values()):
        listed = ", ".join(path.name for path in there[:20]) or "nothing"
        raise UserError(
            f"{folder}: no file of a split; the folder has: {listed}; "
            f"accepted: train.* with or without test.* (or validation.*, dev.*), where * is one of {_types()}"
        )
    return {split: paths for split, paths in found.items() if paths}


def paragraphs(lines: Iterable[str]) -> list[str]:
    """Texts separated by blank lines; where no blank line separates anything, each line is a text."""
    stripped = "\n".join(line.rstrip() for line in lines).strip("\n")
    blocks = re.split(r"\n{2,}", stripped)
    return [block for block in (blocks if len(blocks) > 1 else stripped.split("\n")) if block]


def _files_of(split: str, files: list[Path]) -> list[Path]:
    words = SPLIT_WORDS[split]
    found = [path for path in files if path.stem.lower() in words]
    found = found or [path for path in files if _split_of(path) == split]
    if len({(_without_numbers(path), path.suffix.lower()) for path in found}) > 1:
        raise UserError(
            f"{found[0].parent}: {', '.join(path.name for path in found)} are all named {split}, "
            "but not as shards of one data set; keep one in the folder"
        )
    return found


def _split_of(path: Path) -> str | None:
    tokens = set(_tokens(path))
    named = [split for split, words in SPLIT_WORDS.items() if tokens.intersection(words)]
    return named[0] if len(named) == 1 else None


def _tokens(path: Path) -> list[str]:
    return re.split(r"[^a-z0-9]+", path.stem.lower())


def _without_numbers(path: Path) -> tuple[str, ...]:
    return tuple(token for token in _tokens(path) if not any(c.isdigit() for c in token))


def _reader_of(path: Path) -> Callable[[Path], Iterator[Row]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: can't read files of type {path.suffix!r}; accepted: {_types()}")
    return reader


def _types() -> str:
    return ", ".join(READERS)


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} line {line}: byte 0x{data[error.start]:02x} isn't UTF-8; save the file as UTF-8"
        ) from error


def _jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold U+2028 and its like.
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: broken JSON: {error.msg} at column {error.colno}") from error
            yield _object(where, value)


def _json(path: Path) -> Iterator[Row]:
    text = _text_of(path)
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {error.lineno}: broken JSON: {error.msg} at column {error.colno}; "
            "a file with one object a line must be named .jsonl"
        ) from error
    if not isinstance(values, list):
        raise UserError(f"{path}: top level is {_kind(values)}; allowed: a list of objects")
    for number, value in enumerate(values, start=1):
        yield _object(f"{path} row {number}", value)


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: got {_kind(value)}; allowed: an object such as {{'text': …}}")
    return Row(where, value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _csv(path: Path) -> Iterator[Row]:
    return _table(path, delimiter=",")


def _tsv(path: Path) -> Iterator[Row]:
    return _table(path, delimiter="\t")


def _table(path: Path, *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # long texts are ordinary here
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells under {len(header)} columns ({', '.join(header)}); "
                    'put "…" around a cell that has the delimiter or a line break in it'
                )
            if cells:
                yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        where = f"{path} line {reader.line_num}"
        raise UserError(f"{where}: broken table: {error}; mend the quotes, or use .jsonl") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(f"{path}: pyarrow, needed for parquet, is missing: pip install pyarrow") from error
    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error
    for number, value in enumerate(values, start=1):
        yield Row(f"{path} row {number}", value)


def _plain(path: Path) -> Iterator[Row]:
    for number, text in enumerate(paragraphs(_text_of(path).split("\n")), start=1):
        yield Row(f"{path} text {number}", {"text": text})


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _plain,
    ".text": _plain,
    ".md": _plain,
}
