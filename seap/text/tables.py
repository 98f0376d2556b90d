"""Tables → columns and cells: CSV with the delimiter that its heading shows, and Parquet within a limit on its size."""

import csv
import io
import re
from collections.abc import Iterator
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
    """Rows of a Parquet file. Its texts are read as dictionaries, so that what they unpack to is known before."""
    try:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(f"{path}: pyarrow, needed for parquet, is missing: pip install pyarrow") from error
    number, size, most = 0, 0, limit()
    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            leaves = _leaves(path, opened.metadata, most)
        with pyarrow.parquet.ParquetFile(path, read_dictionary=leaves) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=256):
                size += sum(_unpacked(column) for column in batch.columns)
                if size > most:
                    raise too_large(path, size, most)
                columns = [_values(column) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield f"{path} row {number}", dict(zip(batch.schema.names, cells, strict=True))
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to read it; give a part of it") from error
    except Exception as error:  # each layer of pyarrow raises its own for what is damaged
        told = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: not a readable parquet file: {told or type(error).__name__}") from error


def _values(array: Any) -> list[Any]:
    """Times as text: Python's own hold no nanoseconds."""
    import pyarrow

    return list((array.cast(pyarrow.string()) if pyarrow.types.is_temporal(array.type) else array).to_pylist())


def _leaves(path: Path, metadata: Any, most: int) -> list[str]:
    """The columns of text. Raises UserError where even their dictionaries and the numbers beside them are too large."""
    texts: dict[str, None] = {}
    size = 64 * metadata.num_rows
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            column = row_group.column(i)
            size += column.total_uncompressed_size + 16 * column.num_values
            if column.physical_type == "BYTE_ARRAY":
                texts[column.path_in_schema] = None
    if size > most:
        raise too_large(path, size, most)
    return list(texts)


def _unpacked(array: Any) -> int:
    """Bytes of an array's values, each text counted as often as it is there."""
    import pyarrow
    import pyarrow.compute

    if isinstance(array, pyarrow.DictionaryArray):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return int(pyarrow.compute.sum(pyarrow.compute.cast(lengths, pyarrow.int64())).as_py() or 0)
    if isinstance(array, pyarrow.StructArray):
        return sum(_unpacked(part) for part in array.flatten())
    if isinstance(array, pyarrow.MapArray):
        return _unpacked(array.keys) + _unpacked(array.items)
    if isinstance(array, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)):
        return 8 * len(array) + _unpacked(array.flatten())
    return int(array.nbytes)
