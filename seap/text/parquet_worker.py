"""A process of its own in which a Parquet or Arrow file is read: a damaged one may end it, or unpack without end.

Run by `tables.py` as a script, with the file's path and the most bytes that it may unpack to. On stdout, a line each:
the columns, every row's values, and last {"end": …}, or {"error": …}. It imports nothing of seap.
"""

import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOM = 1 << 30  # bytes beyond what a file may unpack to, for the copies that are made on the way
ROWS = 256  # at a time


class TooLargeError(Exception):
    """With the size."""


def limit_memory(most: int) -> None:
    """Where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2 * most + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def lines(path: str, most: int) -> Iterator[Any]:
    """The columns, then rows. Texts are read as dictionaries, so that what they unpack to is known before."""
    import pyarrow
    import pyarrow.parquet

    if path.lower().endswith(".arrow"):
        yield from arrow_lines(path, most)
        return
    with pyarrow.parquet.ParquetFile(path) as opened:
        schema, metadata = opened.schema, opened.metadata
        leaves = [schema.column(i) for i in range(len(schema.names))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        size = 64 * metadata.num_rows
        size += sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if size > most:
            raise TooLargeError(size)
    size = 0
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
        yield file.schema_arrow.names
        for batch in batches(file):
            size += sum(unpacked(column) for column in batch.columns)
            if size > most:
                raise TooLargeError(size)
            yield from zip(*[values(column) for column in batch.columns], strict=True)


def batches(file: Any) -> Iterator[Any]:
    """Each of one row group: pyarrow has no array for lists with a dictionary per group."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=ROWS, row_groups=[group], use_threads=False)


def arrow_lines(path: str, most: int) -> Iterator[Any]:
    """The same of an Arrow file, as datasets keeps them: a stream, or the format with an index."""
    import pyarrow
    import pyarrow.ipc

    size = 0
    with pyarrow.memory_map(path) as mapped:
        try:
            batches = iter(pyarrow.ipc.open_stream(mapped))
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(mapped)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        for number, batch in enumerate(batches):
            batch.validate(full=True)
            if not number:
                yield batch.schema.names
            size += sum(unpacked(column) for column in batch.columns)
            if size > most:
                raise TooLargeError(size)
            yield from zip(*[values(column) for column in batch.columns], strict=True)


def unpacked(array: Any) -> int:
    """Bytes of an array's values, each text counted as often as it is there."""
    import pyarrow
    import pyarrow.compute

    if isinstance(array, pyarrow.DictionaryArray):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return int(pyarrow.compute.sum(pyarrow.compute.cast(lengths, pyarrow.int64())).as_py() or 0)
    if isinstance(array, pyarrow.StructArray):
        return sum(unpacked(part) for part in array.flatten())
    if isinstance(array, pyarrow.MapArray):
        return unpacked(array.keys) + unpacked(array.items)
    if isinstance(array, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)):
        return 8 * len(array) + unpacked(array.flatten())
    return int(array.nbytes)


def values(array: Any) -> list[Any]:
    """Times as text: Python's own hold no nanoseconds."""
    import pyarrow

    return list((array.cast(pyarrow.string()) if pyarrow.types.is_temporal(array.type) else array).to_pylist())


def plain(value: Any) -> Any:
    """What JSON has no word for: bytes, of images for instance, as text."""
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)


def main(path: str, most: int) -> None:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet  # what takes memory of its own is there before the limit

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    pyarrow.set_cpu_count(1)
    limit_memory(most)
    last: Any = {"end": True}
    try:
        for line in lines(path, most):
            sys.stdout.write(json.dumps(line, default=plain) + "\n")
    except TooLargeError as error:
        last = {"size": error.args[0]}
    except (MemoryError, pyarrow.ArrowMemoryError):
        last = {"size": None}
    except Exception as error:  # each layer of pyarrow raises its own for what is damaged
        last = {"error": (str(error).strip() or type(error).__name__).split("\n")[0][:500]}
    sys.stdout.write(json.dumps(last) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
