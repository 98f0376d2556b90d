"""From files to rows: every format that a task may come in (`folders.py`: which files of a folder are a split's).

A Row remembers where it stood, so that whoever rejects it can say so.
"""

import json
import os.path
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.text.decoding import PACKED, say_once, text_of, without_halves
from seap.text.tables import parquet, table

MOST_DEEP = 100  # levels of lists and objects in one row
HALF = re.compile(r"\\u[dD][89a-fA-F]")
POINTER = b"version https://git-lfs"  # a clone without its large files has these in their place


@dataclass(frozen=True)
class Row:
    """One example as its file has it: `where` is what an error calls it, `values` are its columns.

    folder: from where its paths count.
    """

    where: str
    values: dict[str, Any]
    folder: Path | None = None


def read_rows(files: Iterable[Path]) -> list[Row]:
    """The rows of all files, in order. Raises UserError for an unknown type, a broken file, or no rows."""
    files = list(files)
    rows = [replace(row, folder=file.parent) for file in files for row in _reader_of(file)(file)]
    if not rows:
        raise UserError(f"{', '.join(map(str, files))}: no rows; an empty file can't be a task")
    return rows


def paragraphs(lines: Iterable[str]) -> list[str]:
    """Texts separated by blank lines; where no blank line separates anything, each line is a text."""
    stripped = "\n".join(line.rstrip() for line in lines).strip("\n")
    blocks = re.split(r"\n{2,}", stripped)
    return [block for block in (blocks if len(blocks) > 1 else stripped.split("\n")) if block]


def kind_of(path: Path) -> str:
    """`.jsonl` of `train.jsonl` and of `train.jsonl.gz`."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return (inner if inner not in WHOLE else f"{inner}{suffix}") if suffix in PACKED else suffix


def _reader_of(path: Path) -> Callable[[Path], Iterator[Row]]:
    reader = READERS.get(kind_of(path))
    if reader is None:
        raise UserError(
            f"{path}: can't read files of type {kind_of(path)!r}; accepted: {types()}, of text also packed "
            f"({', '.join(PACKED)})"
        )
    if os.path.isfile(path) and os.path.getsize(path) < 1024 and path.read_bytes().startswith(POINTER):
        kind = kind_of(path).removeprefix(".")
        raise UserError(f"{path}: not a readable {kind} file: it only points to its content; run there: git lfs pull")
    return reader


def types() -> str:
    return ", ".join(READERS)


def _jsonl(path: Path) -> Iterator[Row]:
    text, halves = text_of(path), _Halves(path)
    if text.lstrip()[:1] == "[":  # all rows as one list, under the wrong name
        yield from _listed(path, text, halves)
    else:
        # Not splitlines(): JSON strings may hold U+2028 and its like.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{path} line {number}"
                row = _object(where, _parsed(where, line))
                yield halves.mended(row) if HALF.search(line) else row
    halves.say()


def _json(path: Path) -> Iterator[Row]:
    text, halves = text_of(path), _Halves(path)
    if text.strip():
        yield from _listed(path, text, halves, more="; a file with one object a line must be named .jsonl")
    halves.say()


def _listed(path: Path, text: str, halves: "_Halves", more: str = "") -> Iterator[Row]:
    values = _parsed(str(path), text, more)
    if not isinstance(values, list):
        raise UserError(f"{path}: top level is {_kind(values)}; allowed: a list of objects")
    odd = HALF.search(text) is not None
    for number, value in enumerate(values, start=1):
        row = _object(f"{path} row {number}", value)
        yield halves.mended(row) if odd else row


class _Twice(dict[str, Any]):
    """An object with one name twice, of which JSON would keep the last."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Twice(found, **{"": [name for name, _ in pairs]})


def _parsed(where: str, text: str, more: str = "") -> Any:
    """A JSON value of bounded depth."""
    try:
        value = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if error.lineno > 1 or " line " not in where else ""
        raise UserError(f"{where}{line}: broken JSON: {error.msg} at column {error.colno}{more}") from error
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deeply; at most {MOST_DEEP} levels are read") from None
    except ValueError as error:
        raise UserError(f"{where}: a number of more digits than can be read; write it as text") from error
    level, depth = [value], 0
    while level := [child for part in level if isinstance(part, (dict, list)) for child in _children(part)]:
        depth += 1
        if depth > MOST_DEEP:
            raise UserError(f"{where}: JSON nested too deeply; at most {MOST_DEEP} levels are read")
    return value


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


class _Halves:
    """Rows with half of a surrogate pair (an emoji cut in two), said in one line when the file has been read."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, 0
        self.first = ""

    def mended(self, row: Row) -> Row:
        values = without_halves(row.values)
        if values != row.values:
            self.first = self.first or row.where
            self.found += 1
        return Row(row.where, values)

    def say(self) -> None:
        if self.found:
            say_once(
                f"{self.path}: {self.found} rows have half of a character (a lone surrogate), the first in "
                f"{self.first.removeprefix(f'{self.path} ')}; read as U+FFFD"
            )


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: got {_kind(value)}; allowed: an object such as {{'text': …}}")
    if isinstance(value, _Twice):
        names = value[""]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{where}: column {twice!r} is there twice; name columns apart")
    return Row(where, value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _csv(path: Path) -> Iterator[Row]:
    return (Row(*row) for row in table(path, delimiter=","))


def _tsv(path: Path) -> Iterator[Row]:
    return (Row(*row) for row in table(path, delimiter="\t"))


def _parquet(path: Path) -> Iterator[Row]:
    return (Row(*row) for row in parquet(path))


def _plain(path: Path) -> Iterator[Row]:
    for number, text in enumerate(paragraphs(text_of(path).split("\n")), start=1):
        yield Row(f"{path} text {number}", {"text": text})


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _parquet,
    ".txt": _plain,
    ".text": _plain,
    ".md": _plain,
}
WHOLE = (".parquet", ".arrow")  # which pack their columns themselves
