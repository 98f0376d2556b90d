"""Tables → columns and cells: CSV with the delimiter that its heading shows, and Parquet within a limit on its size."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.text.decoding import limit, text_of, too_large

DELIMITERS = ",;\t|"
Values = dict[str, Any]


def table(path: Path, *, delimiter: str) -> Iterator[tuple[str, Values]]:
    """Rows of a CSV file, with where each stands. Another delimiter is taken where only that gives columns."""
    csv.field_size_limit(2**31 - 1)  # long texts are ordinary here
    text, skipped = text_of(path), 0
    if found := re.match(r'"?sep=([^\w\s"]|\t)"?\n', text):  # what Excel reads the delimiter from
        delimiter, text, skipped = found[1], text[found.end() :], 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, delimiter), strict=True)
    try:
        header = next(reader, [])
        _check_columns(path, header)
        header = [name or f"column {i}" for i, name in enumerate(header, start=1)]
        for cells in reader:
            where = f"{path} line {reader.line_num + skipped}"
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells under {len(header)} columns ({', '.join(header)}); "
                    'put "…" around a cell that has the delimiter or a line break in it'
                )
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        where = f"{path} line {reader.line_num + skipped}"
        raise UserError(f"{where}: broken table: {error}; mend the quotes, or use .jsonl") from error


def _delimiter(text: str, expected: str) -> str:
    """The expected one, unless it finds one column in the heading and another finds more."""

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []))
        except csv.Error:
            return 0

    return expected if columns(expected) > 1 else max((expected, *DELIMITERS), key=columns)


def _check_columns(path: Path, names: list[str]) -> None:
    twice = [name for i, name in enumerate(names) if name and name in names[:i]]
    if twice:
        raise UserError(f"{path}: column {twice[0]!r} is there twice; name columns apart")


def parquet(path: Path) -> Iterator[tuple[str, Values]]:
    """Rows of a Parquet or Arrow file, read in a process of its own, which a damaged file may end."""
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: pyarrow, needed for parquet, is missing: pip install pyarrow")
    most = limit()
    script = Path(__file__).with_name("parquet_worker.py")
    # -P: this folder's modules stand in nobody's way
    command = [sys.executable, "-P", str(script), str(path), str(most)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8") as process:
        assert process.stdout is not None
        try:
            yield from _read(path, process.stdout, most)
        finally:
            process.kill()


def _read(path: Path, lines: Iterable[str], most: int) -> Iterator[tuple[str, Values]]:
    columns: list[str] | None = None
    number, last = 0, ""
    for last in lines:
        if not last.endswith("\n") or last.startswith("{"):
            break
        values = json.loads(last)
        if columns is None:
            columns = values
            _check_columns(path, values)
        else:
            number += 1
            yield f"{path} row {number}", dict(zip(columns, values, strict=True))
    told: dict[str, Any] = (
        json.loads(last) if last.startswith("{") and last.endswith("\n") else {"error": "it ends its reader"}
    )
    if "size" in told:
        raise too_large(path, told["size"] or most, most, at_least=told["size"] is None)
    if "error" in told:
        raise UserError(f"{path}: not a readable {path.suffix[1:].lower()} file: {told['error']}")
