"""From a file's bytes to text: within a limit on their size, in the encoding that they show, or the line is named.

Everything that unpacks goes through `bounded`, since a kilobyte may unpack to as much as its writer liked.
"""

import bz2
import codecs
import gzip
import logging
import lzma
import zlib
from functools import cache
from pathlib import Path
from typing import IO, Any

import psutil

from seap.errors import UserError

MOST_BYTES = 4 << 30  # of one file, unpacked; less where memory is short
PIECE = 1 << 20
PACKED = (".gz", ".bz2", ".xz", ".zst")
MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    *((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)

log = logging.getLogger(__name__)


@cache
def say_once(text: str) -> None:
    """A warning that the same command doesn't repeat for the other split."""
    log.warning("%s", text)


def limit() -> int:
    """How many bytes a file may have when it is unpacked: what becomes of them in memory is several times as much."""
    return min(MOST_BYTES, psutil.virtual_memory().available // 4)


def too_large(path: Path, size: int, most: int, *, at_least: bool = False) -> UserError:
    """The refusal of a file that is, or unpacks to, so many bytes."""
    more = "more than " if at_least else ""
    return UserError(
        f"{path}: {more}{size:,} bytes of data when it is read; at most {most:,} are, by the memory that is free and "
        f"never more than {MOST_BYTES:,}; give a part of it, such as its first 100,000 rows"
    )


def bytes_of(path: Path) -> bytes:
    """A file's content. Raises UserError where it can't be read or is larger than may be."""
    most = limit()
    try:
        if (size := path.stat().st_size) > most:
            raise too_large(path, size, most)
        with opened(path) as file:
            return bounded(file, path)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged, or cut off: {error}") from error
    except OSError as error:  # pyarrow's own is one too
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked by its suffix."""
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
    found: IO[bytes] = openers.get(path.suffix.lower(), open)(path, "rb")
    return found


def _zstd(path: Path, mode: str) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


def bounded(stream: IO[bytes], path: Path) -> bytes:
    """All that a stream gives, such as that of `gzip.open(path)`. Raises UserError where it is more than may be."""
    most, found, size = limit(), [], 0
    while piece := stream.read(PIECE):
        found.append(piece)
        size += len(piece)
        if size > most:
            raise too_large(path, most, most, at_least=True)
    return b"".join(found)


def text_of(path: Path) -> str:
    """A file's text, by its byte order mark or as UTF-8; line ends are line feeds. Raises UserError with the line."""
    return decoded(bytes_of(path), path)


def decoded(data: bytes, path: Path) -> str:
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise UserError(
            f"{path} line {line}: byte 0x00, which no text has (is it UTF-16 without its mark?); save the file as UTF-8"
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        named = encoding.removesuffix("-sig").upper()
        raise UserError(
            f"{path} line {line}: byte 0x{data[error.start]:02x} isn't {named}; save the file as UTF-8"
        ) from error
    return text.replace("\r\n", "\n")


def without_halves(value: Any) -> Any:
    """Strings, in lists and objects too, with U+FFFD for every half of a surrogate pair, which no tokenizer reads."""
    if isinstance(value, str):
        return "".join("�" if "\ud800" <= char <= "\udfff" else char for char in value)
    if isinstance(value, list):
        return [without_halves(part) for part in value]
    if isinstance(value, dict):
        return {without_halves(name): without_halves(part) for name, part in value.items()}
    return value
